"""The nodes that make, change, show and load MASK: float (B,H,W) in 0…1. A single mask may come as (H,W)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch

from serve_app.errors import NodeError
from serve_app.execution.size import allow
from serve_app.images import PNG_LEVEL
from serve_app.nodes.declare import node
from serve_app.nodes.image.images import load_image, previewed
from serve_app.nodes.image.match_size import as_planes, fit_batch
from serve_app.nodes.inputs import Choice, Corner, File, Float, Int, Side
from serve_app.nodes.sockets import EXTRA_PNGINFO, IMAGE, MASK, PROMPT, STORE

CHANNELS = ["red", "green", "blue", "alpha"]


@node("MaskToImage", "Convert Mask to Image", category="image/mask", function="mask_to_image")
def mask_to_image(mask: MASK) -> IMAGE:
    """Masks as grey images. Return images (B,H,W,3)."""
    return as_planes(mask).unsqueeze(-1).expand(-1, -1, -1, 3)


@node("ImageToMask", "Convert Image to Mask", category="image/mask", function="image_to_mask")
def image_to_mask(image: IMAGE, channel: Annotated[str, Choice(CHANNELS)]) -> MASK:
    """One channel of images as masks.

    Return the channel (B,H,W). Errors: NodeError for images that have no such channel.
    """
    index = CHANNELS.index(channel)
    if index >= image.shape[-1]:
        raise NodeError(f"channel is {channel!r}, and the image has {image.shape[-1]} channels")
    return image[..., index].clone()


@node("ImageColorToMask", "Convert Image Color to Mask", category="image/mask", function="image_to_mask")
def image_color_to_mask(
    image: IMAGE, color: Annotated[int, Int(0, min=0, max=0xFFFFFF, step=1, display="number")]
) -> MASK:
    """Masks of the pixels that have one colour.

    Return 1 where the image in 8 bits is color, 0xRRGGBB, and 0 elsewhere.
    """
    wanted = torch.tensor([color >> shift & 0xFF for shift in (16, 8, 0)])
    rounded = (image[..., :3].clamp(0, 1) * 255).round()
    return (rounded == wanted).all(dim=-1).float()


@node("SolidMask", "Create Solid Mask", category="image/mask", function="solid")
def solid_mask(value: Annotated[float, Float(1.0, min=0.0, max=1.0, step=0.01)], width: Side, height: Side) -> MASK:
    """A mask of one value. Return (1,height,width) of the value."""
    allow(1, height, width)
    return torch.full((1, height, width), float(value))


@node("InvertMask", "Invert Mask", category="image/mask", function="invert")
def invert_mask(mask: MASK) -> MASK:
    """Masks of what masks leave out. Return 1 - mask."""
    return 1.0 - mask


@node("CropMask", "Crop Mask", category="image/mask", function="crop")
def crop_mask(mask: MASK, x: Corner, y: Corner, width: Side, height: Side) -> MASK:
    """A rectangle of masks. Return what of the mask lies in the rectangle."""
    return as_planes(mask)[:, y : y + height, x : x + width].clone()


OPERATIONS: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "multiply": torch.mul,
    "add": torch.add,
    "subtract": torch.sub,
    "and": lambda below, above: (below.round().bool() & above.round().bool()).float(),
    "or": lambda below, above: (below.round().bool() | above.round().bool()).float(),
    "xor": lambda below, above: (below.round().bool() ^ above.round().bool()).float(),
}


@node("MaskComposite", "Combine Masks", category="image/mask", function="combine")
def mask_composite(
    destination: MASK, source: MASK, x: Corner, y: Corner, operation: Annotated[str, Choice(OPERATIONS)]
) -> MASK:
    """A mask calculated into another at some place.

    Return the destination, changed where the source lies at (x, y), and all of it held to 0…1.
    """
    out = as_planes(destination).clone()
    place = out[:, y : y + source.shape[-2], x : x + source.shape[-1]]
    above = fit_batch(as_planes(source), out.shape[0])[:, : place.shape[1], : place.shape[2]]
    place.copy_(OPERATIONS[operation](place, above))
    return out.clamp(0.0, 1.0)


@node("FeatherMask", "Feather Mask", category="image/mask", function="feather")
def feather_mask(mask: MASK, left: Corner, top: Corner, right: Corner, bottom: Corner) -> MASK:
    """Return the mask with soft edges: it rises from each edge over a number of pixels."""
    planes = as_planes(mask)
    rows = _feathered(planes.shape[1], top, bottom)
    return planes * rows[:, None] * _feathered(planes.shape[2], left, right)


def _feathered(size: int, start: int, end: int) -> torch.Tensor:
    """Return weights (size,) that rise over start positions from the first, and over end positions from the last.

    A number below 0, which a link may bring, is as 0.
    """
    start, end = (max(0, min(number, size)) for number in (start, end))
    weights = torch.ones(size)
    weights[:start] *= torch.arange(1, start + 1) / max(1, start)
    weights[size - end :] *= torch.arange(end, 0, -1) / max(1, end)
    return weights


@node("ThresholdMask", "Threshold Mask", category="image/mask", function="image_to_mask")
def threshold_mask(mask: MASK, value: Annotated[float, Float(0.5, min=0.0, max=1.0, step=0.01)]) -> MASK:
    """Masks of what is above a value. Return 1 where the mask is above the value, else 0."""
    return (mask > value).float()


@node(
    "MaskPreview",
    "Preview Mask",
    category="image/mask",
    return_types=("MASK",),
    output_is_list=(True,),
    return_names=("mask",),
    output_node=True,
    skips_blocked=True,
)
async def mask_preview(
    mask: list[MASK], prompt: list[PROMPT], extra_pnginfo: list[EXTRA_PNGINFO], store: list[STORE]
) -> dict[str, Any]:
    """Masks to PNG files in the temp area, for looking at."""
    images = [mask_to_image(batch) for batch in mask]
    shown = await previewed(images, prompt, extra_pnginfo, store[0], PNG_LEVEL)
    return {"ui": {"images": shown, "animated": (False,) * len(mask)}, "result": (mask,)}


@node("LoadImageMask", "Load Image (as Mask)", category="image", function="load_image_mask")
async def load_image_mask(
    image: Annotated[str, File("input", image_upload=True)],
    channel: Annotated[str, Choice(["alpha", "red", "green", "blue"])],
    store: STORE,
) -> MASK:
    """One channel of an uploaded file as a mask.

    Return the channel of every frame (B,H,W); of alpha, the masks that LoadImage makes.
    """
    images, masks = await load_image(image, store)
    return masks if channel == "alpha" else images[..., CHANNELS.index(channel)].clone()
