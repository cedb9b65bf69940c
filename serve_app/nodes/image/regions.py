"""The nodes that cut IMAGE into regions, draw on it, and put tiles together again."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.execution.runtime import NodeStore
from serve_app.execution.size import allow, bounds
from serve_app.images import QUICK_PNG_LEVEL, to_png
from serve_app.media import loading
from serve_app.nodes.declare import node
from serve_app.nodes.image.images import own_prefix, save_together
from serve_app.nodes.inputs import MAX_RESOLUTION, Bool, Combo, Float, InputType, Int, Text
from serve_app.nodes.sockets import IMAGE, STORE


async def _preview(images: Tensor, store: NodeStore) -> dict[str, Any]:
    pngs = [await asyncio.to_thread(to_png, image, {}, QUICK_PNG_LEVEL) for image in images]
    prefix = own_prefix("ComfyUI_temp")
    saved = await save_together(store, "temp", ".png", [(prefix, images.shape[1:3], png) for png in pngs])
    return {"images": saved, "animated": (False,)}


@node(
    "ImageCropV2",
    "Crop Image",
    category="image/transform",
    function="crop",
    return_types=("IMAGE",),
    essentials_category="Image Tools",
    has_intermediate_output=True,
    description="Cuts a region out of the images.",
)
async def image_crop_v2(
    image: IMAGE,
    crop_region: Annotated[
        Any,
        InputType(
            "BOUNDING_BOX",
            {"default": {"x": 0, "y": 0, "width": 512, "height": 512}, "socketless": True, "component": "ImageCrop"},
        ),
    ],
    store: STORE,
) -> dict[str, Any]:
    """A part of images, chosen on the page.

    Cut; what reaches over the edge ends there. Errors: NodeError for what is no region.
    """
    if not isinstance(crop_region, Mapping):
        raise NodeError(f"crop_region is {crop_region!r}; it must be an object with x, y, width and height")
    sides = [int(crop_region.get(name, default)) for name, default in _DEFAULTS.items()]
    x, y, width, height = min(sides[0], image.shape[2] - 1), min(sides[1], image.shape[1] - 1), *sides[2:]
    cut = image[:, y : y + height, x : x + width].clone()
    return {"ui": await _preview(cut, store), "result": (cut,)}


_DEFAULTS = {"x": 0, "y": 0, "width": 512, "height": 512}


Side: TypeAlias = Annotated[int, Int(512, min=64, max=4096, step=64, socketless=True, hidden=True)]


@node(
    "Painter",
    "Painter",
    category="image",
    function="paint",
    return_types=("IMAGE", "MASK"),
    has_intermediate_output=True,
    required=("bg_color",),
)
async def painter(
    mask: Annotated[str, Text("", multiline=False, socketless=True, widgetType="PAINTER", image_upload=True)],
    width: Side,
    height: Side,
    store: STORE,
    bg_color: Annotated[str, InputType("COLOR", {"default": "#000000", "socketless": True})] = "#000000",
    image: IMAGE | None = None,
) -> dict[str, Any]:
    """What was painted on the page, over an image or a colour, and where.

    Return the first image, or the colour, with the painting (its file) over it, and the painting's alpha.
    """
    if image is not None:
        base = image[:1, ..., :3]
    else:
        allow(1, height, width, 3)
        base = torch.tensor(rgb(bg_color)).repeat(1, height, width, 1)
    height, width = base.shape[1:3]
    colours, alpha = torch.zeros(1, height, width, 3), torch.zeros(1, height, width)
    if mask.strip():
        size, what = (width, height), f"the painting '{mask}'"
        colours, alpha = await asyncio.to_thread(
            loading.load_painting, await store.read(mask), what, size, bounds(), allow
        )
    drawn = colours * alpha[..., None] + base * (1.0 - alpha[..., None])
    return {"ui": await _preview(drawn, store), "result": (drawn, alpha)}


def rgb(colour: str) -> tuple[float, float, float]:
    """Return #RRGGBB as red, green and blue in 0…1; black for any other text, as ComfyUI does."""
    digits = colour.lstrip("#")
    try:
        red, green, blue = (int(digits[i : i + 2], 16) / 255.0 for i in (0, 2, 4))
    except ValueError:
        return (0.0, 0.0, 0.0)
    return (red, green, blue) if len(digits) == 6 else (0.0, 0.0, 0.0)


@node(
    "TextOverlay",
    "Draw Text Overlay",
    category="text",
    function="draw",
    return_names=("images",),
    description="Writes text on the images, at their top or bottom.",
)
def text_overlay(
    images: IMAGE,
    text: Annotated[str, InputType("STRING", {"multiline": True, "default": ""})],
    font_size: Annotated[float, Float(5.0, min=0.5, max=50.0, step=0.5)],
    color: Annotated[str, InputType("COLOR", {"default": "#ffffff", "socketless": True})],
    position: Annotated[str, Combo(["top", "bottom"], default="top")],
    align: Annotated[str, Combo(["left", "center", "right"], default="left")],
    outline: Annotated[bool, Bool(True)],
) -> IMAGE:
    """Text on images. Draw; font_size is per cent of the height, and smaller where the text would not fit."""
    if not text.strip():
        return images
    if len(text) > CHARACTERS:
        raise NodeError(f"the text has {len(text)} characters; {CHARACTERS} are allowed")
    try:
        fill = ImageColor.getrgb(color)
    except ValueError as error:
        raise NodeError(f"{color!r} is no colour: {error}") from error
    written = text.replace("\\n", "\n").replace("\\t", "\t")
    height, width = images.shape[1:3]
    layer = _written(written, (width, height), font_size, fill, position, align, outline=outline)
    drawn = torch.from_numpy(np.asarray(layer).astype(np.float32) / 255.0).to(images)
    colours, alpha = drawn[..., :3], drawn[..., 3:]
    return images * (1.0 - alpha) + colours * alpha


LINE = 1.2
"""From line to line, in font sizes."""
MARGIN, LEAST_SIZE, STROKE = 0.01, 0.02, 0.04
"""Of the shorter side, the height, and the font's size."""
LEAST_PIXELS = 10
CHARACTERS = 4000
"""How long a text may be: finding where its lines end takes the square of it."""


def _written(
    text: str, size: tuple[int, int], percent: float, fill: tuple[int, ...], position: str, align: str, *, outline: bool
) -> Image.Image:
    """Return the text on a clear RGBA layer, in the largest size up to `percent` of the height that fits."""
    width, height = size
    layer = Image.new("RGBA", size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    margin = round(MARGIN * min(size))
    pixels = max(1, round(percent / 100.0 * height))
    least = min(pixels, max(LEAST_PIXELS, round(LEAST_SIZE * height)))
    while True:
        font = ImageFont.load_default(size=pixels)
        stroke = max(1, round(pixels * STROKE)) if outline else 0
        block = "\n".join(_wrapped(text, font, max(1, width - 2 * margin)))
        one = draw.textbbox((0, 0), "Ay", font=font, stroke_width=stroke)
        two = draw.multiline_textbbox((0, 0), "Ay\nAy", font=font, spacing=0, stroke_width=stroke)
        spacing = round(pixels * LINE - ((two[3] - two[1]) - (one[3] - one[1])))
        box = draw.multiline_textbbox((0, 0), block, font=font, spacing=spacing, stroke_width=stroke)
        if box[3] - box[1] <= max(1, height - 2 * margin) or pixels <= least:
            break
        pixels = max(least, int(pixels * 0.9))
    anchor, x = {"left": ("la", margin), "center": ("ma", width / 2), "right": ("ra", width - margin)}[align]
    y = margin - box[1] if position == "top" else height - margin - box[3]
    draw.multiline_text(
        (x, y),
        block,
        font=font,
        fill=fill if len(fill) == 4 else (*fill, 255),
        anchor=anchor,
        align=align,
        spacing=spacing,
        stroke_width=stroke,
        stroke_fill=(0, 0, 0, 255 if outline else 0),
    )
    return layer


def _wrapped(text: str, font: Any, width: int) -> Iterator[str]:
    """Yield lines no wider than that, broken between words, and within one that is too wide alone."""
    for line in text.split("\n"):
        current = ""
        for word in line.split():
            while font.getlength(word) > width and len(word) > 1:
                cut = 1
                while cut < len(word) and font.getlength(word[: cut + 1]) <= width:
                    cut += 1
                if current:
                    yield current
                    current = ""
                yield word[:cut]
                word = word[cut:]
            longer = f"{current} {word}" if current else word
            if current and font.getlength(longer) > width:
                yield current
                longer = word
            current = longer
        if current or not line.split():
            yield current


TileSide: TypeAlias = Annotated[int, Int(1024, min=64, max=MAX_RESOLUTION)]
Overlap: TypeAlias = Annotated[int, Int(128, min=0, max=4096)]


@node(
    "SplitImageToTileList",
    "Split Image into List of Tiles",
    category="image/batch",
    function="split",
    description="Cuts the images into tiles that overlap.",
)
def split_image_to_tile_list(
    image: IMAGE, tile_width: TileSide, tile_height: TileSide, overlap: Overlap
) -> list[IMAGE]:
    """Images as a list of overlapping tiles.

    Cut row by row; those at the right and the bottom end with the image.
    """
    places = list(_tiles(image.shape[2], image.shape[1], tile_width, tile_height, overlap))
    tall, wide = min(tile_height, image.shape[1]), min(tile_width, image.shape[2])
    allow(len(places), len(image), tall, wide, image.shape[3])
    return [image[:, top:bottom, left:right].clone() for left, top, right, bottom in places]


FinalSide: TypeAlias = Annotated[int, Int(1024, min=64, max=32768)]


@node("ImageMergeTileList", "Merge List of Tiles to Image", category="image/batch", function="merge")
def image_merge_tile_list(
    image_list: list[IMAGE], final_width: list[FinalSide], final_height: list[FinalSide], overlap: list[Overlap]
) -> IMAGE:
    """Overlapping tiles as the images they were cut from.

    Put them in their places; where they overlap, each counts the more the nearer its middle is.
    """
    width, height, shared = final_width[0], final_height[0], overlap[0]
    count, tall, wide, channels = image_list[0].shape
    allow(count, height, width, channels)
    weight = torch.ones(1, tall, wide, 1)
    if shared > 0:
        down, across = (torch.sin(math.pi * torch.linspace(0, 1, side)).clamp(min=1e-5) for side in (tall, wide))
        weight = (down[:, None] * across)[None, ..., None]
    canvas, weights = torch.zeros(count, height, width, channels), torch.zeros(1, height, width, 1)
    for tile, (left, top, right, bottom) in zip(image_list, _tiles(width, height, wide, tall, shared), strict=False):
        rows, columns = min(bottom - top, tile.shape[1]), min(right - left, tile.shape[2])
        place = (slice(None), slice(top, top + rows), slice(left, left + columns))
        canvas[place] += tile[:, :rows, :columns] * weight[:, :rows, :columns]
        weights[place] += weight[:, :rows, :columns]
    return canvas / torch.where(weights == 0, 1.0, weights)


def _tiles(width: int, height: int, wide: int, tall: int, overlap: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (left, top, right, bottom) of each tile, row by row."""
    for top, bottom in _spans(height, tall, overlap):
        for left, right in _spans(width, wide, overlap):
            yield left, top, right, bottom


def _spans(length: int, size: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the tiles along one side; they go on by at least a quarter of a tile."""
    for start in range(0, length, round(max(size * 0.25, size - overlap))):
        end = min(start + size, length)
        yield max(0, end - size), end
        if end >= length:
            return
