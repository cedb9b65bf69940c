"""The nodes that resize IMAGE and MASK alike, and that join any number of linked ones into one batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from serve_app.execution.size import allow
from serve_app.graph.spec import MATCH_TYPE
from serve_app.images import Crop
from serve_app.nodes.declare import node
from serve_app.nodes.image.match_size import fit_latents, resize
from serve_app.nodes.image.scale import IMAGE_METHODS
from serve_app.nodes.inputs import MAX_RESOLUTION, Autogrow, Combo, DynamicCombo, Float, InputType, Int, MatchType
from serve_app.nodes.latent.latents import CROPS
from serve_app.nodes.sockets import IMAGE, LATENT, MASK
from serve_app.values import Latent

MOST = 50
"""How many may be linked into one batch."""


def _side(default: int = 512, least: int = 0) -> InputType:
    return Int(default, min=least, max=MAX_RESOLUTION, step=1)


CROP = Combo(CROPS, default="center")
WAYS: Mapping[str, Mapping[str, InputType]] = {
    "scale dimensions": {"width": _side(), "height": _side(), "crop": CROP},
    "scale by multiplier": {"multiplier": Float(1.0, min=0.01, max=8.0, step=0.01)},
    "scale longer dimension": {"longer_size": _side()},
    "scale shorter dimension": {"shorter_size": _side()},
    "scale width": {"width": _side()},
    "scale height": {"height": _side()},
    "scale total pixels": {"megapixels": Float(1.0, min=0.01, max=16.0, step=0.01)},
    "match size": {"match": InputType("IMAGE,MASK"), "crop": CROP},
    "scale to multiple": {"multiple": _side(8, 1)},
}


@node(
    "ResizeImageMaskNode",
    "Resize Image/Mask",
    category="image/transform",
    return_types=(MATCH_TYPE,),
    return_names=("resized",),
    output_matchtypes=("input_type",),
    description="Resizes images or masks to a size, by a factor, to a number of pixels, or as large as others.",
)
def resize_image_mask_node(
    input: Annotated[Tensor, MatchType("input_type", "IMAGE", "MASK")],
    resize_type: Annotated[Mapping[str, Any], DynamicCombo(WAYS)],
    scale_method: Annotated[str, Combo(IMAGE_METHODS, default="area")],
) -> tuple[Tensor]:
    """An image or a mask at another size, in any of nine ways.

    Return (B,H,W,C) or (B,H,W) resized. A side of 0 follows the other; both 0 change nothing.
    """
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


@node("BatchImagesNode", "Batch Images", category="image/batch", essentials_category="Image Tools")
def batch_images_node(
    images: Annotated[Mapping[str, Tensor], Autogrow(InputType("IMAGE"), name="image", prefix="image", most=MOST)],
) -> IMAGE:
    """Images as one batch.

    Join them, cut and resized to the first's size; where one has alpha, the others get an opaque one.
    """
    return batch_images(list(images.values()))


@node("BatchMasksNode", "Batch Masks", category="image/mask")
def batch_masks_node(
    masks: Annotated[Mapping[str, Tensor], Autogrow(InputType("MASK"), name="mask", prefix="mask", most=MOST)],
) -> MASK:
    """Masks as one batch. Join them, cut and resized to the first's size."""
    return batch_images([mask.unsqueeze(-1) for mask in masks.values()]).squeeze(-1)


@node("BatchLatentsNode", "Batch Latents", category="model/latent/batch")
def batch_latents_node(
    latents: Annotated[Mapping[str, Latent], Autogrow(InputType("LATENT"), name="latent", prefix="latent", most=MOST)],
) -> LATENT:
    """Latents as one batch. Join them, cut and resized to the first's size, each with the noise it had."""
    values = list(latents.values())
    first: Tensor = values[0]["samples"]
    fitted: list[Tensor] = []
    index: list[int] = []
    for latent in values:
        samples: Tensor = latent["samples"]
        index += latent.get("batch_index", range(samples.shape[0]))
        same = samples.shape[1:] == first.shape[1:]
        fitted.append(samples if same else fit_latents(samples, first.shape[-1], first.shape[-2], "bilinear", "center"))
    return {**values[0], "samples": torch.cat(fitted), "batch_index": index}


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
