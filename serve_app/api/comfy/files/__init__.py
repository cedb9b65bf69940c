"""ComfyUI's dialect of files: uploads, views, models, user data."""
