"""ComfyUI's web page, and what node packs add to it."""
