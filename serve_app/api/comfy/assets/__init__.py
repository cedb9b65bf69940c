"""ComfyUI's dialect of assets."""
