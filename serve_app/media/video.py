"""Files of pictures and sound, read: what they hold, and the part of them in a window of time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from serve_app.errors import NodeError
from serve_app.media import audio
from serve_app.media.container import opened
from serve_app.media.frames import Conversion, Frame, together, undamaged
from serve_app.media.pictures import check_pixels

TRANSFERS = {"sRGB": 13, "HDR": 18, "HDR PQ": 16}
"""Transfer characteristics (ITU-T H.273) by name: sRGB, hybrid log-gamma, perceptual quantiser."""
SPACES = {1: "sRGB", **{number: name for name, number in TRANSFERS.items()}}
"""The names of transfer characteristics, BT.709 among them."""

WARM_UP_S = 0.25
"""How much sound is decoded before what is wanted: a packet of most codecs completes the one before it."""


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

    def as_values(self) -> dict[str, Any]:
        """Return them as JSON has them."""
        return {**asdict(self), "frame_rate": str(self.frame_rate)}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Facts:
        """Return them from what `as_values` returned."""
        return cls(**{**values, "frame_rate": Fraction(values["frame_rate"])})


def told(data: bytes, what: str, pixels: int) -> Iterator[dict[str, Any]]:
    """Yield what a file says of itself. Errors: NodeError for data that holds no pictures."""
    yield facts(data, what).as_values()


def facts(data: bytes, what: str) -> Facts:
    """Return what a file says of itself, without decoding. Errors: NodeError for data that holds no pictures."""
    with opened(data, what) as container:
        stream = pictures_of(container, what)
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


def decoded(
    data: bytes, what: str, pixels: int, start_s: float, duration_s: float
) -> Iterator[dict[str, Any] | Frame | audio.Samples]:
    """Yield the file's facts, the frames (n,H,W,3|4) of a window, {rate} of its sound and that in pieces (C,n).

    The rate is None for a mute one. Errors: NodeError for a file without pictures, of changing size or of larger ones
    than `pixels`.
    """
    window, known = Window(start_s, duration_s), facts(data, what)
    check_pixels(known.width, known.height, what, pixels)
    yield known.as_values()
    with opened(data, what) as container:
        yield from together(_arrays(container, window, what, pixels))
    with opened(data, what) as container:
        stream = sound_of(container)
        if stream is None:
            yield {"rate": None}
            return
        yield {"rate": int(stream.codec_context.sample_rate)}
        yield from audio.together(samples for samples, _ in sound(container, stream, window))


def _arrays(container: Any, window: Window, what: str, pixels: int) -> Iterator[Frame]:
    conversion, first = Conversion(pictures_of(container, what).time_base), None
    for frame in frames(container, window, what, pixels):
        array = conversion.array(frame)
        first = array.shape if first is None else first
        if array.shape != first:
            size, before = (f"{shape[1]}×{shape[0]}" for shape in (array.shape, first))
            raise NodeError(f"{what} has frames that change from {before} to {size}; one batch has one size")
        yield array


def pictures_of(container: Any, what: str) -> Any:
    """Return the first stream of pictures. Errors: NodeError if there is none."""
    streams = [stream for stream in container.streams.video if stream.codec_context is not None]
    if not streams:
        raise NodeError(f"{what} has no pictures in it that can be read here")
    return streams[0]


def sound_of(container: Any) -> Any:
    """Return the last stream of sound whose codec is known here, or None. Phones put theirs behind one that is not."""
    return next((stream for stream in reversed(container.streams.audio) if stream.codec_context is not None), None)


def frames(container: Any, window: Window, what: str, pixels: int) -> Iterator[Any]:
    """Yield PyAV's frames of a window: those that begin in it. Damaged ones are left out.

    pixels: the most that one may have. Errors: NodeError for a larger one.
    """
    stream, origin_s = pictures_of(container, what), begin_s(container)
    first = int((window.start_s + origin_s) / stream.time_base) if window.start_s else None
    end = int((window.end_s + origin_s) / stream.time_base) if window.duration_s else None
    if first is not None:
        container.seek(first, stream=stream)
    for frame in undamaged(container, stream, what, pixels):
        if first is not None and frame.pts is not None and frame.pts < first:
            continue
        if end is not None and frame.pts is not None and frame.pts >= end:
            return
        yield frame


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
