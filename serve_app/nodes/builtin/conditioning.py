"""The nodes that make CONDITIONING from text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_app.nodes.runtime import Runtime
from serve_app.values import ClipSkip, Conditioning, Recipe


class CLIPTextEncode:
    """Text to conditioning, in ComfyUI's prompt syntax."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "encode"
    CATEGORY = "conditioning"
    DESCRIPTION = "Encodes a text prompt into conditioning that guides the diffusion model."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "text": ("STRING", {"multiline": True, "dynamicPrompts": True}),
                "clip": ("CLIP",),
            },
            "hidden": {"runtime": "RUNTIME"},
        }

    async def encode(self, clip: Recipe, text: str, runtime: Runtime) -> tuple[Conditioning]:
        """Return the text's conditioning."""
        return (await runtime.encode_text(clip, text),)


class CLIPSetLastLayer:
    """Clip skip: take the text encoder's output from an earlier layer."""

    RETURN_TYPES = ("CLIP",)
    FUNCTION = "set_last_layer"
    CATEGORY = "conditioning"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        layer = ("INT", {"default": -1, "min": -24, "max": -1, "step": 1})
        return {"required": {"clip": ("CLIP",), "stop_at_clip_layer": layer}}

    def set_last_layer(self, clip: Recipe, stop_at_clip_layer: int) -> tuple[Recipe]:
        """Return the recipe with the layer to stop at."""
        return (clip.with_patch(ClipSkip(stop_at_clip_layer)),)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "CLIPTextEncode": CLIPTextEncode,
    "CLIPSetLastLayer": CLIPSetLastLayer,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "CLIPTextEncode": "CLIP Text Encode (Prompt)",
    "CLIPSetLastLayer": "CLIP Set Last Layer",
}
