"""ComfyUI's own HTTP and websocket dialect."""
