"""Files of pictures and sound, read: what they hold, and the part of them in a window of time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.limits import refused
from serve_app.media import audio
from serve_app.media.container import Allow, opened, pyav
from serve_app.media.filters import Filters

WHAT = "the video"

TRANSFERS = {"sRGB": 13, "HDR": 18, "HDR PQ": 16}
"""Transfer characteristics (ITU-T H.273) by name: sRGB, hybrid log-gamma, perceptual quantiser."""
SPACES = {1: "sRGB", **{number: name for name, number in TRANSFERS.items()}}
"""The names of transfer characteristics, BT.709 among them."""

EIGHT_BIT_FORMATS = frozenset({"yuvj420p", "yuvj422p", "yuvj444p", "rgb24", "rgba", "pal8"})
"""Pixel formats that are read as 8-bit colours; all others become float colours, as ComfyUI reads them."""
WARM_UP_S = 0.25
"""How much sound is decoded before what is wanted: a packet of most codecs completes the one before it."""
ALIGNED = 32
"""Wide rows of so many pixels are converted alike wherever they lie in memory; others first get more pixels."""


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a video. start_s: from 0. duration_s: 0 is all that follows."""

    start_s: float = 0.0
    duration_s: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.start_s or self.duration_s)

    @property
    def end_s(self) -> float:
        """Where it ends; infinite if nothing bounds it."""
        return self.start_s + self.duration_s if self.duration_s else float("inf")

    def within(self, duration_s: float) -> float:
        """Return how much of a video of this length is in it, in seconds."""
        return max(0.0, min(self.end_s, duration_s) - self.start_s)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file says of its pictures.

    frames: 0 if it does not say. color_space: a name of TRANSFERS, None if it says none. container, codec: as FFmpeg
    calls them, several containers with commas between.
    """

    width: int
    height: int
    frame_rate: Fraction
    frames: int
    duration_s: float
    bit_depth: int
    color_space: str | None
    container: str
    codec: str


def facts(data: bytes) -> Facts:
    """Return what a file says of itself, without decoding. Errors: NodeError for data that holds no pictures."""
    with opened(data, WHAT) as container:
        stream = pictures_of(container)
        rate = Fraction(stream.average_rate) if stream.average_rate else Fraction(1)
        if container.duration is not None:
            duration_s = container.duration / 1_000_000
        else:
            count = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
            duration_s = float(count / rate)
        context = stream.codec_context
        depth = max((part.bits for part in context.format.components), default=8) if context.format else 8
        space, codec = SPACES.get(int(context.color_trc)), stream.codec.canonical_name
        named = (depth, space, container.format.name, codec)
        return Facts(context.width, context.height, rate, stream.frames, duration_s, *named)


def decode(data: bytes, window: Window, allow: Allow, pixels: int) -> tuple[Tensor, tuple[Tensor, int] | None]:
    """Return the frames (B,H,W,3) in 0…1 of a window, and its sound (1,C,T) with its rate, None for a mute one.

    pixels: the most that a frame may have. Errors: NodeError for a file without pictures there, of changing size or of
    larger ones, and by `allow` for more than that lets pass: before it is decoded if the file says so, else on the way.
    """
    known = facts(data)
    _check_pixels(known.width, known.height, pixels)
    expected = int(window.within(known.duration_s) * known.frame_rate)
    allow(expected if window or not known.frames else known.frames, known.height, known.width, 3)
    images: list[Tensor] = []
    with opened(data, WHAT) as container:
        filters = Filters(pictures_of(container))
        for frame in frames(container, window, pixels):
            image = _image(frame, filters)
            if images and image.shape != images[0].shape:
                size, first = (f"{shape[1]}×{shape[0]}" for shape in (image.shape, images[0].shape))
                raise NodeError(f"the video's frames change from {first} to {size}; one batch has one size")
            allow(len(images) + 1, *image.shape)
            images.append(image)
    if not images:
        raise NodeError(f"the video has no frames from second {window.start_s:g} on")
    scale = 255.0 if images[0].dtype == torch.uint8 else 1.0
    return torch.stack(images).float().div_(scale), decode_sound(data, window, allow)


def decode_sound(data: bytes, window: Window, allow: Allow) -> tuple[Tensor, int] | None:
    """Return the sound (1,C,T) of a window and its rate, None for a mute video. Errors: as `decode`."""
    with opened(data, WHAT) as container:
        stream = sound_of(container)
        if stream is None:
            return None
        rate = int(stream.codec_context.sample_rate)
        pieces = list(audio.counted((samples for samples, _ in sound(container, stream, window)), allow))
    return (torch.from_numpy(np.concatenate(pieces, axis=1))[None], rate) if pieces else None


def pictures_of(container: Any) -> Any:
    """Return the first stream of pictures. Errors: NodeError if there is none."""
    streams = [stream for stream in container.streams.video if stream.codec_context is not None]
    if not streams:
        raise NodeError("the file has no pictures in it that can be read here")
    return streams[0]


def sound_of(container: Any) -> Any:
    """Return the last stream of sound whose codec is known here, or None. Phones put theirs behind one that is not."""
    return next((stream for stream in reversed(container.streams.audio) if stream.codec_context is not None), None)


def frames(container: Any, window: Window, pixels: int) -> Iterator[Any]:
    """Yield the frames of a window, turned upright: those that begin in it. Damaged ones are left out.

    pixels: the most that one may have. Errors: NodeError for a larger one.
    """
    stream, origin_s = pictures_of(container), begin_s(container)
    first = int((window.start_s + origin_s) / stream.time_base) if window.start_s else None
    end = int((window.end_s + origin_s) / stream.time_base) if window.duration_s else None
    if first is not None:
        container.seek(first, stream=stream)
    filters = Filters(stream)
    for packet in container.demux(stream):
        try:
            decoded = packet.decode()
        except pyav().error.InvalidDataError:
            continue
        for frame in decoded:
            _check_pixels(frame.width, frame.height, pixels)
            if first is not None and frame.pts is not None and frame.pts < first:
                continue
            if end is not None and frame.pts is not None and frame.pts >= end:
                return
            yield filters.upright(frame)


def sound(container: Any, stream: Any, window: Window) -> Iterator[tuple[audio.Samples, int]]:
    """Yield the pieces (C,n) of a stream in a window, and the sample rate."""
    origin_s = begin_s(container)
    if window.start_s > WARM_UP_S:
        container.seek(int((window.start_s - WARM_UP_S + origin_s) / stream.time_base), stream=stream)
    begun, left = False, None
    for samples, at_s, rate in audio.sound(container, stream):
        if not begun:
            start_s = at_s - origin_s
            if start_s >= window.end_s:
                return
            left = None if not window.duration_s else int(window.duration_s * rate)
            skipped = max(0, int((window.start_s - start_s) * rate))
            if skipped >= samples.shape[1]:
                continue
            begun, samples = True, samples[:, skipped:]
        if left is not None:
            samples, left = samples[:, :left], max(0, left - samples.shape[1])
        if samples.shape[1]:
            yield samples, rate
        if left == 0:
            return


def begin_s(container: Any) -> float:
    """Return the second that a file's own times start at, which streams of broadcasts do not at 0."""
    return (container.start_time or 0) / 1_000_000


def _check_pixels(width: int, height: int, pixels: int) -> None:
    if width * height > pixels:
        refused("limits.image_pixels")
        raise NodeError(
            f"the video has frames of {width}×{height} pixels; "
            f"limits.image_pixels of the configuration allows {pixels:,}"
        )


def _image(frame: Any, filters: Filters) -> Tensor:
    """Return a frame (H,W,3): bytes, or float in 0…1."""
    if frame.format.name in EIGHT_BIT_FORMATS:
        return torch.from_numpy(frame.to_ndarray(format="rgb24"))
    width, height = frame.width, frame.height
    if width % ALIGNED:
        frame = filters.padded(frame, ALIGNED)
    return torch.from_numpy(np.ascontiguousarray(frame.to_ndarray(format="gbrpf32le")[:height, :width]))
