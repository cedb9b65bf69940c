"""Serve ComfyUI workflows on a Ray Serve cluster. The floors and what each may know: ARCHITECTURE.md."""

__version__ = "0.1.0"
