"""The nodes that cut, turn, pad and join IMAGE."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import torch
from torch.nn.functional import pad

from serve_app.execution.size import allow
from serve_app.nodes.declare import node
from serve_app.nodes.image.match_size import resize
from serve_app.nodes.inputs import MAX_RESOLUTION, Bool, Choice, Corner, Int, Side
from serve_app.nodes.sockets import IMAGE, MASK

COLORS = {
    "white": (1.0, 1.0, 1.0),
    "black": (0.0, 0.0, 0.0),
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
}
ROWS, COLUMNS = 1, 2
"""The dimensions of an IMAGE that a join goes along."""


@node("ImageCrop", "Crop Image (DEPRECATED)", category="image/transform", function="crop", deprecated=True)
def image_crop(image: IMAGE, width: Side, height: Side, x: Corner, y: Corner) -> IMAGE:
    """A rectangle of images. Return what of the rectangle lies in the image, one pixel at least."""
    left, top = min(x, image.shape[2] - 1), min(y, image.shape[1] - 1)
    return image[:, top : top + height, left : left + width]


@node("ImageRotate", "Rotate Image", category="image/transform", function="rotate")
def image_rotate(
    image: IMAGE, rotation: Annotated[str, Choice(["none", "90 degrees", "180 degrees", "270 degrees"])]
) -> IMAGE:
    """Images turned clockwise by quarters."""
    quarters = 0 if rotation == "none" else int(rotation.split()[0]) // 90
    return torch.rot90(image, quarters, (COLUMNS, ROWS))


@node("ImageFlip", "Flip Image", category="image/transform", function="flip")
def image_flip(
    image: IMAGE, flip_method: Annotated[str, Choice(["x-axis: vertically", "y-axis: horizontally"])]
) -> IMAGE:
    """Images mirrored. Mirror top to bottom, or left to right."""
    return image.flip(ROWS if flip_method.startswith("x") else COLUMNS)


@node(
    "ImageStitch",
    "Stitch Images",
    category="image/transform",
    function="stitch",
    description=(
        "Puts image2 on the chosen side of image1, with a strip of colour between them if wanted. "
        "Without image2, gives image1 as it is."
    ),
)
def image_stitch(
    image1: IMAGE,
    direction: Annotated[str, Choice(["right", "down", "left", "up"], default="right")],
    match_image_size: Annotated[bool, Bool(True)],
    spacing_width: Annotated[int, Int(0, min=0, max=1024, step=2)],
    spacing_color: Annotated[str, Choice(COLORS, default="white")],
    image2: IMAGE | None = None,
) -> IMAGE:
    """Two images side by side.

    Join; the shorter batch repeats its last image, and missing alpha is opaque.

    match_image_size True resizes image2 to image1's height or width, False centres the smaller one on white, or on
    black if the strip's colour is not white.
    """
    if image2 is None:
        return image1
    along, across = (COLUMNS, ROWS) if direction in ("left", "right") else (ROWS, COLUMNS)
    count, channels = (max(image1.shape[dim], image2.shape[dim]) for dim in (0, 3))
    image1, image2 = (_repeat_last(image, count) for image in (image1, image2))
    if match_image_size:
        image2 = _with_side(image2, across, image1.shape[across])
    else:
        side = max(image1.shape[across], image2.shape[across])
        value = 1.0 if spacing_color == "white" else 0.0
        image1, image2 = (_centred(image, across, side, value) for image in (image1, image2))
    image1, image2 = (pad(image, (0, channels - image.shape[3]), value=1.0) for image in (image1, image2))
    images = [image2, image1] if direction in ("left", "up") else [image1, image2]
    if spacing_width > 0:
        shape = list(image1.shape)
        shape[along] = spacing_width + spacing_width % 2
        allow(*shape[:along], sum(x.shape[along] for x in images) + shape[along], *shape[along + 1 :])
        colour = torch.tensor([*COLORS[spacing_color], 1.0])[:channels]
        images.insert(1, colour.to(image1).expand(shape))
    return torch.cat(images, along)


@node("ResizeAndPadImage", "Resize And Pad Image", category="image/transform", function="resize_and_pad")
def resize_and_pad_image(
    image: IMAGE,
    target_width: Side,
    target_height: Side,
    padding_color: Annotated[str, Choice(["white", "black"])],
    interpolation: Annotated[str, Choice(["area", "bicubic", "nearest-exact", "bilinear", "lanczos"])],
) -> IMAGE:
    """Images at a size of another aspect, with bars.

    Fit the images into the size and centre them on the colour.
    """
    height, width = image.shape[1:3]
    scale = min(target_width / width, target_height / height)
    wide, high = int(width * scale), int(height * scale)
    if wide and high:
        resized = resize(image, wide, high, interpolation)
    else:  # nothing is left of an image that is too narrow for a single pixel
        resized = image.new_empty(image.shape[0], high, wide, image.shape[3])
    value = 1.0 if padding_color == "white" else 0.0
    return _centred(_centred(resized, ROWS, target_height, value), COLUMNS, target_width, value)


Margin: TypeAlias = Annotated[int, Int(0, min=0, max=MAX_RESOLUTION, step=8)]


@node("ImagePadForOutpaint", "Pad Image for Outpainting", category="image/transform", function="expand_image")
def image_pad_for_outpaint(
    image: IMAGE,
    left: Margin,
    top: Margin,
    right: Margin,
    bottom: Margin,
    feathering: Annotated[int, Int(40, min=0, max=MAX_RESOLUTION, step=1)],
) -> tuple[IMAGE, MASK]:
    """Images with grey margins, and the mask of what is to be painted there.

    Return images (B,H+top+bottom,W+left+right,C) and one mask (1,…), 1 in the margins.

    Over `feathering` pixels into the image from a margin the mask falls quadratically to 0; not at all where the
    image is under twice as wide or high.
    """
    height, width = image.shape[1:3]
    allow(image.shape[0], top + height + bottom, left + width + right, image.shape[3])
    mask = torch.zeros(height, width)
    if feathering > 0 and 2 * feathering < min(height, width):
        rows = _distance(height, top, bottom)[:, None]
        columns = _distance(width, left, right)[None]
        inside = torch.minimum(rows, columns).clamp(max=feathering)
        mask = (((feathering - inside) / feathering) ** 2).float()
    margins = (left, right, top, bottom)
    return pad(image, (0, 0, *margins), value=0.5), pad(mask, margins, value=1.0)[None]


def _distance(length: int, before: int, after: int) -> torch.Tensor:
    """Return each cell's distance (length,) from the nearer margin of those there are, else `length`."""
    at = torch.arange(length, dtype=torch.float64)
    far = torch.full_like(at, length)
    return torch.minimum(at if before else far, length - at if after else far)


def _repeat_last(image: torch.Tensor, count: int) -> torch.Tensor:
    return torch.cat([image, image[-1:].expand(count - len(image), -1, -1, -1)])


def _with_side(image: torch.Tensor, dim: int, side: int) -> torch.Tensor:
    """Resize to a height (dim ROWS) or width (dim COLUMNS), the aspect kept."""
    aspect = image.shape[COLUMNS] / image.shape[ROWS]
    width, height = (int(side * aspect), side) if dim == ROWS else (side, int(side / aspect))
    return resize(image, max(1, width), max(1, height), "lanczos")


def _centred(image: torch.Tensor, dim: int, side: int, value: float) -> torch.Tensor:
    """Pad one dimension to `side`; the odd pixel goes to the end."""
    missing = side - image.shape[dim]
    allow(*image.shape[:dim], side, *image.shape[dim + 1 :])
    margins = [0, 0, 0, 0, 0, 0]
    at = 2 * (3 - dim)
    margins[at : at + 2] = [missing // 2, missing - missing // 2]
    return pad(image, margins, value=value)
