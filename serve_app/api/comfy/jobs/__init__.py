"""ComfyUI's dialect of jobs: prompt, queue, history, websocket."""
