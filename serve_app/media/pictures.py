"""Decoder tasks on images by Pillow, of listed formats only.

Others of Pillow's formats start programs or are rarely tested; EPS is run by Ghostscript.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    IcoImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TgaImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from serve_app.errors import NodeError
from serve_app.limits import refused

Pixels: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]

FORMATS = (
    AvifImagePlugin.AvifImageFile.format,
    BmpImagePlugin.BmpImageFile.format,
    GifImagePlugin.GifImageFile.format,
    IcoImagePlugin.IcoImageFile.format,
    Jpeg2KImagePlugin.Jpeg2KImageFile.format,
    JpegImagePlugin.JpegImageFile.format,
    PngImagePlugin.PngImageFile.format,
    PpmImagePlugin.PpmImageFile.format,
    TgaImagePlugin.TgaImageFile.format,
    TiffImagePlugin.TiffImageFile.format,
    WebPImagePlugin.WebPImageFile.format,
)
"""The formats that Pillow may open, whatever the file's name."""
ERRORS = (Image.DecompressionBombError, OSError, ValueError, SyntaxError)
"""What Pillow raises for a file that it cannot read."""


class TooManyPixelsError(NodeError):
    """An image, or a frame, has more pixels than the limit."""


@contextmanager
def open_image(data: bytes, what: str, pixels: int) -> Iterator[Image.Image]:
    """Open an image file. pixels: the limit. Errors: NodeError, also while it is read inside the context."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            check_pixels(image.width, image.height, what, pixels)
            yield image
    except UnidentifiedImageError as error:
        raise NodeError(f"{what} is no image that can be read: its format is none of {', '.join(FORMATS)}") from error
    except ERRORS as error:
        raise NodeError(f"{what} is no image that can be read: {error}") from error


def check_pixels(width: int, height: int, what: str, pixels: int) -> None:
    """Check a frame's number of pixels. Errors: TooManyPixelsError."""
    if width * height > pixels:
        refused("limits.image_pixels")
        raise TooManyPixelsError(
            f"{what} has {width}×{height} pixels; limits.image_pixels of the configuration allows {pixels:,}"
        )


def first_frame(data: bytes, what: str, pixels: int) -> Iterator[Pixels]:
    """Yield the first frame (1,H,W,3), not rotated by its orientation."""
    with open_image(data, what, pixels) as image:
        scaled = image.point(lambda value: value * (1 / 255)) if image.mode == "I" else image
        yield np.asarray(scaled.convert("RGB"))[None]


def painting_frame(data: bytes, what: str, pixels: int, width: int, height: int) -> Iterator[Pixels]:
    """Yield the first frame (1,height,width,4), resized if it is of another size."""
    with open_image(data, what, pixels) as file:
        image = file.convert("RGBA")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    yield np.asarray(image)[None]


def preview(data: bytes, what: str, pixels: int, format: str, quality: int, colours: bool) -> Iterator[bytes]:
    """Yield the image as a file of a format, webp or jpeg. colours: without its alpha."""
    with open_image(data, what, pixels) as image:
        drawn = image.convert("RGB") if colours or format == "jpeg" else image
        yield _file(drawn, format, quality=quality)


def channel(data: bytes, what: str, pixels: int, alpha: bool) -> Iterator[bytes]:
    """Yield a PNG of the colours alone, or of the alpha alone: black, and as opaque as the image is."""
    with open_image(data, what, pixels) as image:
        if not alpha:
            yield _file(image.convert("RGB"), "png")
            return
        opaque = image.getchannel("A") if image.mode == "RGBA" else Image.new("L", image.size, 255)
        drawn = Image.new("RGBA", image.size)
        drawn.putalpha(opaque)
        yield _file(drawn, "png")


def with_alpha(data: bytes, mask: bytes, what: str, pixels: int) -> Iterator[bytes]:
    """Yield a PNG of an image with a mask's alpha and the image's own text."""
    with open_image(data, what, pixels) as image, open_image(mask, "the mask", pixels) as drawn:
        texts = PngImagePlugin.PngInfo()
        for key, value in getattr(image, "text", {}).items():
            texts.add_text(key, value)
        painted = image.convert("RGBA")
        painted.putalpha(drawn.convert("RGBA").getchannel("A"))
    yield _file(painted, "png", compress_level=4, pnginfo=texts)


def _file(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()
