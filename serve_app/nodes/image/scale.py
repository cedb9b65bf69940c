"""The nodes that resize IMAGE by interpolation."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import torch

from serve_app.images import Crop
from serve_app.nodes.image.match_size import resize
from serve_app.nodes.latent.latents import CROPS, MAX_RESOLUTION

IMAGE_METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]

_WIDE = ((1568, 672), (1504, 688), (1456, 720), (1392, 752), (1328, 800), (1248, 832), (1184, 880), (1104, 944))
KONTEXT_SIZES = (*_WIDE, (1024, 1024), *((high, wide) for wide, high in _WIDE))
"""(width, height). Source: Black Forest Labs 2025, FLUX.1 Kontext's sampling code."""


class ImageScale:
    """Images at another size."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "upscale"
    CATEGORY = "image/upscaling"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 512, "min": 0, "max": MAX_RESOLUTION, "step": 1}
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (IMAGE_METHODS,),
                "width": ("INT", side),
                "height": ("INT", side),
                "crop": (CROPS,),
            }
        }

    def upscale(
        self, image: torch.Tensor, upscale_method: str, width: int, height: int, crop: Crop
    ) -> tuple[torch.Tensor]:
        """Resize; a side of 0 follows the other, both 0 change nothing."""
        if width == 0 and height == 0:
            return (image,)
        old_height, old_width = image.shape[1:3]
        width = width or max(1, round(old_width * height / old_height))
        height = height or max(1, round(old_height * width / old_width))
        return (resize(image, width, height, upscale_method, crop),)


class ImageScaleBy:
    """Images at a multiple of their size."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "upscale"
    CATEGORY = "image/upscaling"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (IMAGE_METHODS,),
                "scale_by": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 8.0, "step": 0.01}),
            }
        }

    def upscale(self, image: torch.Tensor, upscale_method: str, scale_by: float) -> tuple[torch.Tensor]:
        """Resize both sides by one factor, to whole pixels."""
        return (_scaled(image, scale_by, upscale_method),)


class ImageScaleToTotalPixels:
    """Images at a number of pixels, their aspect kept."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "upscale"
    CATEGORY = "image/upscaling"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (IMAGE_METHODS,),
                "megapixels": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 16.0, "step": 0.01}),
                "resolution_steps": ("INT", {"default": 1, "min": 1, "max": 256}),
            }
        }

    def upscale(
        self, image: torch.Tensor, upscale_method: str, megapixels: float, resolution_steps: int = 1
    ) -> tuple[torch.Tensor]:
        """Resize to sides that are multiples of resolution_steps; a megapixel is 1024×1024."""
        height, width = image.shape[1:3]
        factor = sqrt(megapixels * 1024 * 1024 / (width * height))
        return (_scaled(image, factor, upscale_method, resolution_steps),)


class ImageScaleToMaxDimension:
    """Images whose longer side is given, their aspect kept."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "upscale"
    CATEGORY = "image/upscaling"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (["area", "lanczos", "bilinear", "nearest-exact", "bilinear", "bicubic"],),
                "largest_size": ("INT", {"default": 512, "min": 0, "max": MAX_RESOLUTION, "step": 1}),
            }
        }

    def upscale(self, image: torch.Tensor, upscale_method: str, largest_size: int) -> tuple[torch.Tensor]:
        """Resize."""
        height, width = image.shape[1:3]
        longer = max(height, width)
        # The aspect is rounded before it is multiplied, as in ComfyUI: another order can end a pixel off.
        sides = (largest_size if side == longer else round((side / longer) * largest_size) for side in (width, height))
        new_width, new_height = (max(1, side) for side in sides)
        return (resize(image, new_width, new_height, upscale_method),)


class FluxKontextImageScale:
    """Images at that of FLUX.1 Kontext's sizes which is nearest in aspect."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "scale"
    CATEGORY = "model/conditioning/flux"
    DESCRIPTION = "Resizes an image to one of the sizes that FLUX.1 Kontext was trained on."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",)}}

    def scale(self, image: torch.Tensor) -> tuple[torch.Tensor]:
        """Resize, and cut off what is over on both sides."""
        height, width = image.shape[1:3]
        # Of two that are as near the narrower, as in ComfyUI.
        wide, high = min(KONTEXT_SIZES, key=lambda size: (abs(width / height - size[0] / size[1]), size))
        return (resize(image, wide, high, "lanczos", "center"),)


def _scaled(image: torch.Tensor, factor: float, method: str, multiple: int = 1) -> torch.Tensor:
    height, width = (max(1, round(side * factor / multiple)) * multiple for side in image.shape[1:3])
    return resize(image, width, height, method)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "ImageScale": ImageScale,
    "ImageScaleBy": ImageScaleBy,
    "ImageScaleToTotalPixels": ImageScaleToTotalPixels,
    "ImageScaleToMaxDimension": ImageScaleToMaxDimension,
    "FluxKontextImageScale": FluxKontextImageScale,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "ImageScale": "Upscale Image",
    "ImageScaleBy": "Upscale Image By",
    "ImageScaleToTotalPixels": "Scale Image to Total Pixels",
    "ImageScaleToMaxDimension": "Scale Image to Max Dimension",
}
