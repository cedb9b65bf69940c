"""The nodes that resize IMAGE by interpolation."""

from __future__ import annotations

from math import sqrt
from typing import Annotated, TypeAlias

import torch

from serve_app.images import Crop
from serve_app.nodes.declare import node
from serve_app.nodes.image.match_size import resize
from serve_app.nodes.inputs import MAX_RESOLUTION, Choice, Float, Int
from serve_app.nodes.latent.latents import CROPS
from serve_app.nodes.sockets import IMAGE

IMAGE_METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]

_WIDE = ((1568, 672), (1504, 688), (1456, 720), (1392, 752), (1328, 800), (1248, 832), (1184, 880), (1104, 944))
KONTEXT_SIZES = (*_WIDE, (1024, 1024), *((high, wide) for wide, high in _WIDE))
"""(width, height). Source: Black Forest Labs 2025, FLUX.1 Kontext's sampling code."""


UpscaleMethod: TypeAlias = Annotated[str, Choice(IMAGE_METHODS)]
Side: TypeAlias = Annotated[int, Int(512, min=0, max=MAX_RESOLUTION, step=1)]


@node("ImageScale", "Upscale Image", category="image/upscaling", function="upscale")
def image_scale(
    image: IMAGE, upscale_method: UpscaleMethod, width: Side, height: Side, crop: Annotated[Crop, Choice(CROPS)]
) -> IMAGE:
    """Images at another size. Resize; a side of 0 follows the other, both 0 change nothing."""
    if width == 0 and height == 0:
        return image
    old_height, old_width = image.shape[1:3]
    width = width or max(1, round(old_width * height / old_height))
    height = height or max(1, round(old_height * width / old_width))
    return resize(image, width, height, upscale_method, crop)


@node("ImageScaleBy", "Upscale Image By", category="image/upscaling", function="upscale")
def image_scale_by(
    image: IMAGE, upscale_method: UpscaleMethod, scale_by: Annotated[float, Float(1.0, min=0.01, max=8.0, step=0.01)]
) -> IMAGE:
    """Images at a multiple of their size. Resize both sides by one factor, to whole pixels."""
    return _scaled(image, scale_by, upscale_method)


@node(
    "ImageScaleToTotalPixels",
    "Scale Image to Total Pixels",
    category="image/upscaling",
    function="upscale",
    required=("resolution_steps",),
)
def image_scale_to_total_pixels(
    image: IMAGE,
    upscale_method: UpscaleMethod,
    megapixels: Annotated[float, Float(1.0, min=0.01, max=16.0, step=0.01)],
    resolution_steps: Annotated[int, Int(1, min=1, max=256)] = 1,
) -> IMAGE:
    """Images at a number of pixels, their aspect kept.

    Resize to sides that are multiples of resolution_steps; a megapixel is 1024×1024.
    """
    height, width = image.shape[1:3]
    factor = sqrt(megapixels * 1024 * 1024 / (width * height))
    return _scaled(image, factor, upscale_method, abs(resolution_steps))


@node("ImageScaleToMaxDimension", "Scale Image to Max Dimension", category="image/upscaling", function="upscale")
def image_scale_to_max_dimension(
    image: IMAGE,
    upscale_method: Annotated[str, Choice(["area", "lanczos", "bilinear", "nearest-exact", "bilinear", "bicubic"])],
    largest_size: Side,
) -> IMAGE:
    """Images whose longer side is given, their aspect kept."""
    height, width = image.shape[1:3]
    longer = max(height, width)
    # The aspect is rounded before it is multiplied, as in ComfyUI: another order can end a pixel off.
    sides = (largest_size if side == longer else round((side / longer) * largest_size) for side in (width, height))
    new_width, new_height = (max(1, side) for side in sides)
    return resize(image, new_width, new_height, upscale_method)


@node(
    "FluxKontextImageScale",
    category="model/conditioning/flux",
    function="scale",
    description="Resizes an image to one of the sizes that FLUX.1 Kontext was trained on.",
)
def flux_kontext_image_scale(image: IMAGE) -> IMAGE:
    """Images at that of FLUX.1 Kontext's sizes which is nearest in aspect.

    Resize, and cut off what is over on both sides.
    """
    height, width = image.shape[1:3]
    # Of two that are as near the narrower, as in ComfyUI.
    wide, high = min(KONTEXT_SIZES, key=lambda size: (abs(width / height - size[0] / size[1]), size))
    return resize(image, wide, high, "lanczos", "center")


def _scaled(image: torch.Tensor, factor: float, method: str, multiple: int = 1) -> torch.Tensor:
    height, width = (max(1, round(side * factor / multiple)) * multiple for side in image.shape[1:3])
    return resize(image, width, height, method)
