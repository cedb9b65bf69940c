"""Drawing boxes on images: a layout's with its numbers, texts and colours, and what a detector has found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageFont
from torch import Tensor

LONGEST = 1024
"""The longer side of a layout's picture, in pixels, at most."""
DIMMED = 0.25
GREY = round(DIMMED * 128)
PLAIN = (140, 140, 140)
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
LUMINANCE = (0.299, 0.587, 0.114)
LEGIBLE = 130
"""The least luminance of a text, and from which a number is written in black, of 255."""
DARK_ON = 140
SWATCHES = 5

COLOURS = (
    *((255, 0, 0), (0, 200, 0), (0, 0, 255), (255, 165, 0)),
    *((128, 0, 128), (0, 255, 255), (255, 20, 147), (100, 149, 237)),
)
_VEHICLES = "person bicycle car motorcycle airplane bus train truck boat"
_STREET = "traffic_light fire_hydrant stop_sign parking_meter bench"
_ANIMALS = "bird cat dog horse sheep cow elephant bear zebra giraffe"
_THINGS = "backpack umbrella handbag tie suitcase frisbee skis snowboard sports_ball kite baseball_bat baseball_glove"
_THINGS += " skateboard surfboard tennis_racket bottle wine_glass cup fork knife spoon bowl"
_FOOD = "banana apple sandwich orange broccoli carrot hot_dog pizza donut cake"
_INDOORS = "chair couch potted_plant bed dining_table toilet tv laptop mouse remote keyboard cell_phone microwave oven"
_INDOORS += " toaster sink refrigerator book clock vase scissors teddy_bear hair_drier toothbrush"
COCO = tuple(
    name.replace("_", " ")
    for names in (_VEHICLES, _STREET, _ANIMALS, _THINGS, _FOOD, _INDOORS)
    for name in names.split()
)
"""What detectors find, in order. Source: Lin et al. 2014, "Microsoft COCO"."""


@dataclass(frozen=True, slots=True)
class Region:
    """A box of a layout, in shares of the canvas; a side below 0 goes the other way. text: None of a thing."""

    left: float
    top: float
    width: float
    height: float
    text: str | None
    description: str
    palette: tuple[str, ...]

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def bottom(self) -> float:
        return self.top + self.height


def draw_layout(regions: Sequence[Region], width: int, height: int, background: Tensor | None) -> Tensor:
    """Return a picture (1,h,w,3) of a layout over the first of some images, dimmed, or over grey.

    width, height: of the canvas, for its aspect where there is no background.
    """
    if background is not None:
        base = _image(background[0]).convert("RGB")
        base = ImageEnhance.Brightness(base.resize(_within(*base.size), Image.Resampling.LANCZOS)).enhance(DIMMED)
    else:
        base = Image.new("RGB", _within(width, height), (GREY, GREY, GREY))
    draw = ImageDraw.Draw(base)
    for number, region in enumerate(regions, 1):
        _draw_region(draw, base.size, number, region)
    return _tensor(base)[None]


def _within(width: int, height: int) -> tuple[int, int]:
    factor = min(1.0, LONGEST / max(width, height))
    return max(1, round(width * factor)), max(1, round(height * factor))


def _draw_region(draw: ImageDraw.ImageDraw, size: tuple[int, int], number: int, region: Region) -> None:
    width, height = size
    left, right = sorted(max(0, min(width, round(x * width))) for x in (region.left, region.right))
    top, bottom = sorted(max(0, min(height, round(y * height))) for y in (region.top, region.bottom))
    colour = _rgb(region.palette[0]) if region.palette else PLAIN
    draw.rectangle((left, top, right, bottom), outline=colour, width=2)

    pixels = max(10, round(height / 64))
    swatches = region.palette[:SWATCHES] if right - left > 2 else ()
    for i, swatch in enumerate(swatches):
        start, end = (left + round(at * (right - left) / len(swatches)) for at in (i, i + 1))
        draw.rectangle((start, top, end, top + max(5, pixels // 2)), fill=_rgb(swatch))

    label, small = f"{number:02}", ImageFont.load_default(max(9, pixels - 2))
    draw.rectangle((left, top, left + draw.textlength(label, font=small) + 6, top + pixels + 2), fill=colour)
    draw.text((left + 3, top + 1), label, fill=BLACK if _luminance(colour) > DARK_ON else WHITE, font=small)

    caption = region.description
    if region.text:
        caption = f'"{region.text}"' + (f" — {caption}" if caption else "")
    if caption and right - left > 8:
        font = ImageFont.load_default(pixels)
        for i, line in enumerate(_lines(draw, caption, font, right - left - 8)):
            y = top + pixels + 5 + i * (pixels + 2)
            if y > bottom:
                break
            draw.text((left + 4, y), line, fill=_legible(colour), font=font)


def _lines(draw: ImageDraw.ImageDraw, text: str, font: Any, width: float) -> Iterator[str]:
    """Yield a text's lines, broken between words where they would be wider."""
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}" if line else word
            if line and draw.textlength(longer, font=font) > width:
                yield line
                longer = word
            line = longer
        yield line


def _rgb(colour: str) -> tuple[int, int, int]:
    digits = colour.lstrip("#")
    try:
        red, green, blue = bytes.fromhex(digits)
    except ValueError:
        return WHITE
    return red, green, blue


def _luminance(colour: Sequence[int]) -> float:
    return sum(share * channel for share, channel in zip(LUMINANCE, colour, strict=True))


def _legible(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the colour, mixed with white until it can be read on a dark ground."""
    if (luminance := _luminance(colour)) >= LEGIBLE:
        return colour
    white = (LEGIBLE - luminance) / (255 - luminance)
    red, green, blue = (round(channel + (255 - channel) * white) for channel in colour)
    return red, green, blue


def draw_detections(image: Tensor, boxes: Sequence[Mapping[str, Any]]) -> Tensor:
    """Return an image (H,W,3) with boxes on it, the surest on top; COCO's labels are written, each in its colour."""
    drawn = _image(image)
    draw = ImageDraw.Draw(drawn)
    font = ImageFont.load_default()
    for box in sorted(boxes, key=lambda box: float(box.get("score", 1.0))):
        label = box.get("label")
        known = label in COCO
        colour = COLOURS[COCO.index(label) % len(COLOURS) if known else 0]
        x, y = float(box["x"]), float(box["y"])
        draw.rectangle((x, y, x + box["width"], y + box["height"]), outline=colour, width=3)
        if known:
            draw.text((x + 2, y + 2), f"{label} {float(box.get('score', 1.0)):.2f}", fill=colour, font=font)
    return _tensor(drawn)


def _image(pixels: Tensor) -> Image.Image:
    return Image.fromarray((pixels.cpu().numpy() * 255).clip(0, 255).astype(np.uint8))


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0)
