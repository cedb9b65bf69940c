"""The nodes that resize IMAGE or MASK alike, and that make one batch of as many as are linked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from serve_app.execution.size import allow
from serve_app.graph.spec import MATCH_TYPE
from serve_app.images import Crop
from serve_app.nodes.dynamic_inputs import autogrow, combo, dynamic_combo, match_type
from serve_app.nodes.image.match_size import fit_latents, resize
from serve_app.nodes.image.scale import IMAGE_METHODS
from serve_app.nodes.latent.latents import CROPS, MAX_RESOLUTION
from serve_app.values import Latent

MOST = 50
"""How many may be linked into one batch."""


def _side(default: int = 512, least: int = 0) -> tuple[str, dict[str, Any]]:
    return ("INT", {"default": default, "min": least, "max": MAX_RESOLUTION, "step": 1})


CROP = combo(CROPS, default="center")
WAYS: Mapping[str, Mapping[str, Any]] = {
    "scale dimensions": {"width": _side(), "height": _side(), "crop": CROP},
    "scale by multiplier": {"multiplier": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 8.0, "step": 0.01})},
    "scale longer dimension": {"longer_size": _side()},
    "scale shorter dimension": {"shorter_size": _side()},
    "scale width": {"width": _side()},
    "scale height": {"height": _side()},
    "scale total pixels": {"megapixels": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 16.0, "step": 0.01})},
    "match size": {"match": ("IMAGE,MASK", {}), "crop": CROP},
    "scale to multiple": {"multiple": _side(8, 1)},
}


class ResizeImageMaskNode:
    """An image or a mask at another size, in any of nine ways."""

    RETURN_TYPES = (MATCH_TYPE,)
    RETURN_NAMES = ("resized",)
    OUTPUT_MATCHTYPES = ("input_type",)
    FUNCTION = "execute"
    CATEGORY = "image/transform"
    DESCRIPTION = "Resizes images or masks to a size, by a factor, to a number of pixels, or as large as others."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "input": match_type("input_type", "IMAGE", "MASK"),
                "resize_type": dynamic_combo(WAYS),
                "scale_method": combo(IMAGE_METHODS, default="area"),
            }
        }

    def execute(self, input: Tensor, resize_type: Mapping[str, Any], scale_method: str) -> tuple[Tensor]:
        """Return (B,H,W,C) or (B,H,W) resized. A side of 0 follows the other; both 0 change nothing."""
        images = _as_images(input)
        height, width = images.shape[1:3]
        crop: Crop = resize_type.get("crop", "disabled")
        match resize_type["resize_type"]:
            case "scale dimensions" | "scale width" | "scale height":
                given = resize_type.get("width", 0), resize_type.get("height", 0)
                if given == (0, 0):
                    return (input,)
                size = (
                    given[0] or max(1, round(width * given[1] / height)),
                    given[1] or max(1, round(height * given[0] / width)),
                )
            case "scale by multiplier":
                size = _times(width, height, resize_type["multiplier"])
            case "scale longer dimension":
                size = _with_side(width, height, resize_type["longer_size"], longer=True)
            case "scale shorter dimension":
                size = _with_side(width, height, resize_type["shorter_size"], longer=False)
            case "scale total pixels":
                total = int(resize_type["megapixels"] * 1024 * 1024)
                size = _times(width, height, math.sqrt(total / (width * height)))
            case "match size":
                like = _as_images(resize_type["match"])
                size = like.shape[2], like.shape[1]
            case _:
                return (_as_input(_to_multiple(images, resize_type["multiple"], scale_method), input),)
        return (_as_input(resize(images, *size, scale_method, crop), input),)


def _as_images(value: Tensor) -> Tensor:
    return value if value.ndim == 4 else value.unsqueeze(-1)


def _as_input(images: Tensor, like: Tensor) -> Tensor:
    return images if like.ndim == 4 else images.squeeze(-1)


def _times(width: int, height: int, factor: float) -> tuple[int, int]:
    return round(width * factor), round(height * factor)


def _with_side(width: int, height: int, side: int, *, longer: bool) -> tuple[int, int]:
    if width == height:
        return side, side
    if (width > height) == longer:
        return side, round(height / width * side)
    return round(width / height * side), side


def _to_multiple(images: Tensor, multiple: int, method: str) -> Tensor:
    """Return the images with sides divisible by the number: scaled to cover the next smaller size, then cut."""
    height, width = images.shape[1:3]
    across, down = width // multiple * multiple, height // multiple * multiple
    if 0 in (across, down) or (across, down) == (width, height):
        return images
    by_width = across / width >= down / height
    large = (
        across if by_width else max(across, math.ceil(width * (down / height))),
        max(down, math.ceil(height * (across / width))) if by_width else down,
    )
    scaled = resize(images, *large, method)
    x, y = (large[0] - across) // 2, (large[1] - down) // 2
    return scaled[:, y : y + down, x : x + across]


class BatchImagesNode:
    """Images as one batch."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "execute"
    CATEGORY = "image/batch"
    ESSENTIALS_CATEGORY = "Image Tools"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": autogrow(("IMAGE", {}), name="image", prefix="image", most=MOST)}}

    def execute(self, images: Mapping[str, Tensor]) -> tuple[Tensor]:
        """Join them, cut and resized to the first's size; where one has alpha, the others get an opaque one."""
        return (batch_images(list(images.values())),)


class BatchMasksNode:
    """Masks as one batch."""

    RETURN_TYPES = ("MASK",)
    FUNCTION = "execute"
    CATEGORY = "image/mask"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"masks": autogrow(("MASK", {}), name="mask", prefix="mask", most=MOST)}}

    def execute(self, masks: Mapping[str, Tensor]) -> tuple[Tensor]:
        """Join them, cut and resized to the first's size."""
        return (batch_images([mask.unsqueeze(-1) for mask in masks.values()]).squeeze(-1),)


class BatchLatentsNode:
    """Latents as one batch."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "execute"
    CATEGORY = "model/latent/batch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"latents": autogrow(("LATENT", {}), name="latent", prefix="latent", most=MOST)}}

    def execute(self, latents: Mapping[str, Latent]) -> tuple[Latent]:
        """Join them, cut and resized to the first's size, each with the noise it had."""
        values = list(latents.values())
        first: Tensor = values[0]["samples"]
        fitted: list[Tensor] = []
        index: list[int] = []
        for latent in values:
            samples: Tensor = latent["samples"]
            index += latent.get("batch_index", range(samples.shape[0]))
            same = samples.shape[1:] == first.shape[1:]
            fitted.append(
                samples if same else fit_latents(samples, first.shape[-1], first.shape[-2], "bilinear", "center")
            )
        return ({**values[0], "samples": torch.cat(fitted), "batch_index": index},)


def batch_images(images: Sequence[Tensor]) -> Tensor:
    """Return images (B,H,W,C) end to end, at the size of the first and with as many channels as any."""
    channels = max(image.shape[-1] for image in images)
    height, width = images[0].shape[1:3]
    allow(sum(image.shape[0] for image in images), height, width, channels)
    fitted = []
    for image in images:
        if image.shape[-1] < channels:
            image = pad(image, (0, channels - image.shape[-1]), value=1.0)
        same = image.shape[1:3] == (height, width)
        fitted.append(image if same else resize(image, width, height, "bilinear", "center"))
    return torch.cat(fitted)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "ResizeImageMaskNode": ResizeImageMaskNode,
    "BatchImagesNode": BatchImagesNode,
    "BatchMasksNode": BatchMasksNode,
    "BatchLatentsNode": BatchLatentsNode,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "ResizeImageMaskNode": "Resize Image/Mask",
    "BatchImagesNode": "Batch Images",
    "BatchMasksNode": "Batch Masks",
    "BatchLatentsNode": "Batch Latents",
}
