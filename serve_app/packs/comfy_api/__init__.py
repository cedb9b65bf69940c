"""ComfyUI's package `comfy_api` as packs import it: node classes of the third version, their inputs and results."""
