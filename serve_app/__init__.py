"""Serve ComfyUI workflows on a Ray Serve cluster. The floors and what each may know: ARCHITECTURE.md."""

__version__ = "0.1.0"

COMFYUI_VERSION = "0.33.0"
"""The ComfyUI whose behaviour this server has: it tells clients and node packs so, and is tested by its figures."""
