"""The nodes that make SDXL's CONDITIONING: text, and the sizes or the score that the model is told beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_app.execution.runtime import Runtime
from serve_app.nodes.latent.latents import MAX_RESOLUTION
from serve_app.recipe import Recipe
from serve_app.values import Conditioning, Texts

_TEXT = ("STRING", {"multiline": True, "dynamicPrompts": True})
_SIDE = ("INT", {"default": 1024, "min": 0, "max": MAX_RESOLUTION})
_CROP = ("INT", {"default": 0, "min": 0, "max": MAX_RESOLUTION})


def _told(conditioning: Conditioning, **told: float) -> Conditioning:
    return [(cond, {**options, **told}) for cond, options in conditioning]


class CLIPTextEncodeSDXL:
    """A text for each of SDXL's two encoders, and the sizes of the picture it describes."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "encode"
    CATEGORY = "model/conditioning/stable diffusion"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "clip": ("CLIP",),
                "width": _SIDE,
                "height": _SIDE,
                "crop_w": _CROP,
                "crop_h": _CROP,
                "target_width": _SIDE,
                "target_height": _SIDE,
                "text_g": _TEXT,
                "text_l": _TEXT,
            },
            "hidden": {"runtime": "RUNTIME"},
        }

    async def encode(
        self,
        clip: Recipe,
        width: int,
        height: int,
        crop_w: int,
        crop_h: int,
        target_width: int,
        target_height: int,
        text_g: str,
        text_l: str,
        runtime: Runtime,
    ) -> tuple[Conditioning]:
        """Return the texts' conditioning with the sizes."""
        conditioning = await runtime.encode_text(clip, Texts(g=text_g, l=text_l))
        return (
            _told(
                conditioning,
                width=width,
                height=height,
                crop_w=crop_w,
                crop_h=crop_h,
                target_width=target_width,
                target_height=target_height,
            ),
        )


class CLIPTextEncodeSDXLRefiner:
    """Text for SDXL's refiner, with the size of the picture and how good it is to look."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "encode"
    CATEGORY = "model/conditioning/stable diffusion"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "ascore": ("FLOAT", {"default": 6.0, "min": 0.0, "max": 1000.0, "step": 0.01}),
                "width": _SIDE,
                "height": _SIDE,
                "text": _TEXT,
                "clip": ("CLIP",),
            },
            "hidden": {"runtime": "RUNTIME"},
        }

    async def encode(
        self, clip: Recipe, ascore: float, width: int, height: int, text: str, runtime: Runtime
    ) -> tuple[Conditioning]:
        """Return the text's conditioning with the size and the score."""
        conditioning = await runtime.encode_text(clip, text)
        return (_told(conditioning, aesthetic_score=ascore, width=width, height=height),)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "CLIPTextEncodeSDXLRefiner": CLIPTextEncodeSDXLRefiner,
    "CLIPTextEncodeSDXL": CLIPTextEncodeSDXL,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "CLIPTextEncodeSDXLRefiner": "CLIP Text Encode (SDXL Refiner)",
    "CLIPTextEncodeSDXL": "CLIP Text Encode (SDXL)",
}
