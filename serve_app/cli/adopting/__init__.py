"""`serve-app adopt FOLDER`: a configuration for the models, packs and workflows of a ComfyUI, which stay in place."""
