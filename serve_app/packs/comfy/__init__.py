"""ComfyUI's package `comfy` as packs import it, each file named as the module it stands for."""
