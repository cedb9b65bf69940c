"""Decoding of image files to frames as ComfyUI 0.33 does it: by PyAV, and by Pillow if PyAV finds no frame.

Only TGA is detected by the file's name, as it has no magic number. Measured against ComfyUI, including the alignment
that makes pixels independent of memory: `tests/parity/file_cases.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
from PIL import ImageOps, ImageSequence, TgaImagePlugin

from serve_app.errors import NodeError
from serve_app.media import pictures
from serve_app.media.container import open_container, pyav, reading
from serve_app.media.filters import Filters
from serve_app.media.pictures import TooManyPixelsError, check_pixels

Frame: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
"""(H,W,3|4), of bytes or of float32 in 0…1, with alpha or without."""

EIGHT_BIT_FORMATS = frozenset({"yuvj420p", "yuvj422p", "yuvj444p", "rgb24", "rgba", "pal8"})
"""Pixel formats that are read as 8-bit colours; all others become float colours, as ComfyUI reads them."""
ALIGNED = 32
"""Rows padded to a multiple of this many pixels are converted equally at any memory address."""
TARGA = ".tga"
"""The suffix of files that FFmpeg reads as TGA."""
ONE_FRAME = frozenset({"JPEG", "MPO"})
"""Formats of one image; FFmpeg would read a camera's second view as another video frame."""
TOGETHER_BYTES, TOGETHER = 4 << 20, 1024
"""Small frames are sent together, up to this many bytes and this many frames."""


def decode_frames(data: bytes, what: str, pixels: int, name: str = "") -> Iterator[Frame]:
    """Yield the frames of an image file, those of one size together: (n,H,W,3|4).

    Frames of another size than the first are left out. pixels: the limit of one frame. name: the file's own. Errors:
    NodeError for an unreadable file, and for a larger frame.
    """
    # FFmpeg decodes a frame of most formats as it opens them, before its size is known.
    format = _head(data, what, pixels)
    targa = format == TgaImagePlugin.TgaImageFile.format and name.lower().endswith(TARGA)
    found = (_targa if targa else _by_pyav)(data, what, pixels)
    if format in ONE_FRAME:
        found = islice(found, 1)
    first = _first(found)
    if first is None:
        found = _by_pillow(data, what, pixels)
        first = next(found)
    yield from batch_frames(_alike(first, found))


class Conversion:
    """Converts the frames of one stream with a time base to arrays, of a format chosen by the first frame."""

    def __init__(self, time_base: Fraction) -> None:
        self._filters = Filters(time_base)
        self._format = ""

    def array(self, frame: Any) -> Frame:
        """Return a frame as an array, rotated by quarter turns as its display matrix says."""
        if not self._format:
            self._format = _format(frame)
        width, height, rotation = frame.width, frame.height, frame.rotation
        if self._format.endswith("f32le") and width % ALIGNED:
            frame = self._filters.padded(frame, ALIGNED)
        array: Frame = frame.to_ndarray(format=self._format)[:height, :width]
        return np.rot90(array, k=int(rotation // 90), axes=(0, 1))


def batch_frames(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Yield frames (H,W,C) of one shape in batches (n,H,W,C), several in one if they are small."""
    batch: list[Frame] = []
    for frame in frames:
        batch.append(frame)
        if len(batch) * frame.nbytes >= TOGETHER_BYTES or len(batch) == TOGETHER:
            yield np.stack(batch) if len(batch) > 1 else batch[0][None]
            batch = []
    if batch:
        yield np.stack(batch)


def _head(data: bytes, what: str, pixels: int) -> str | None:
    """Return the format by Pillow's name, None if it knows none. Errors: TooManyPixelsError."""
    try:
        with pictures.open_image(data, what, pixels) as image:
            return image.format
    except TooManyPixelsError:
        raise
    except NodeError:
        return None


def _first(found: Iterator[Frame]) -> Frame | None:
    """Return the first frame; None if there is none that can be read."""
    try:
        return next(found, None)
    except TooManyPixelsError:
        raise
    except NodeError:
        return None


def _format(frame: Any) -> str:
    alpha = frame.format.name == "pal8" or any(part.is_alpha for part in frame.format.components)
    if frame.format.name in EIGHT_BIT_FORMATS:
        return "rgba" if alpha else "rgb24"
    return "gbrapf32le" if alpha else "gbrpf32le"


def _alike(first: Frame, rest: Iterable[Frame]) -> Iterator[Frame]:
    yield first
    yield from (frame for frame in rest if frame.shape == first.shape)


def _by_pyav(data: bytes, what: str, pixels: int) -> Iterator[Frame]:
    with open_container(data, what) as container:
        if not container.streams.video or container.streams.video[0].codec_context is None:
            return
        stream = container.streams.video[0]
        conversion = Conversion(stream.time_base)
        yield from map(conversion.array, undamaged(container, stream, what, pixels))


def _targa(data: bytes, what: str, pixels: int) -> Iterator[Frame]:
    with reading(what):
        (frame,) = pyav().CodecContext.create("targa", "r").decode(pyav().Packet(data))
    check_pixels(frame.width, frame.height, what, pixels)
    yield Conversion(Fraction(1)).array(frame)


def undamaged(container: Any, stream: Any, what: str, pixels: int) -> Iterator[Any]:
    """Yield a stream's frames, as PyAV's, without damaged ones. Errors: NodeError for one of more pixels."""
    for packet in container.demux(stream):
        try:
            decoded = packet.decode()
        except pyav().error.InvalidDataError:
            continue
        for frame in decoded:
            check_pixels(frame.width, frame.height, what, pixels)
            yield frame


def _by_pillow(data: bytes, what: str, pixels: int) -> Iterator[Frame]:
    with pictures.open_image(data, what, pixels) as file:
        transparent: bool | None = None
        for raw in ImageSequence.Iterator(file):
            # The header may be wrong, and later frames may be larger than the first.
            check_pixels(raw.width, raw.height, what, pixels)
            frame = ImageOps.exif_transpose(raw)
            if transparent is None:
                transparent = "A" in frame.getbands()
            yield np.asarray(frame.convert("RGBA" if transparent else "RGB"))
