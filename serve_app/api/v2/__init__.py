"""Comfy API v2: jobs, assets and events under /api/v2."""
