"""Decoding of video files: their metadata, and the frames and audio in a window of time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from serve_app.errors import NodeError
from serve_app.media import audio
from serve_app.media.container import open_container
from serve_app.media.frames import Conversion, Frame, batch_frames, undamaged
from serve_app.media.pictures import check_pixels

TRANSFERS = {"sRGB": 13, "HDR": 18, "HDR PQ": 16}
"""Transfer characteristics (ITU-T H.273) by name: sRGB, hybrid log-gamma, perceptual quantiser."""
SPACES = {1: "sRGB", **{number: name for name, number in TRANSFERS.items()}}
"""The names of transfer characteristics, BT.709 among them."""

WARM_UP_S = 0.25
"""How much audio is decoded before a window: in most codecs a packet completes the one before it."""


@dataclass(frozen=True, slots=True)
class Window:
    """A time window of a video. start_s: from 0. duration_s: 0 is up to the end."""

    start_s: float = 0.0
    duration_s: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.start_s or self.duration_s)

    @property
    def end_s(self) -> float:
        """Its end; infinite without a duration."""
        return self.start_s + self.duration_s if self.duration_s else float("inf")

    def within(self, duration_s: float) -> float:
        """Return how much of a video of this length is in it, in seconds."""
        return max(0.0, min(self.end_s, duration_s) - self.start_s)


@dataclass(frozen=True, slots=True)
class Facts:
    """Metadata of a file's video.

    frames: 0 if unknown. color_space: a name of TRANSFERS, None if unknown. container, codec: FFmpeg's names, several
    containers separated by commas.
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
        """Return them as JSON values."""
        return {**asdict(self), "frame_rate": str(self.frame_rate)}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Facts:
        """Return them from what `as_values` returned."""
        return cls(**{**values, "frame_rate": Fraction(values["frame_rate"])})


def yield_facts(data: bytes, what: str, pixels: int) -> Iterator[dict[str, Any]]:
    """Yield a file's metadata as JSON values. Errors: NodeError for data without video."""
    yield video_facts(data, what).as_values()


def video_facts(data: bytes, what: str) -> Facts:
    """Return a file's metadata, without decoding. Errors: NodeError for data without video."""
    with open_container(data, what) as container:
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


def decode_video(
    data: bytes, what: str, pixels: int, start_s: float, duration_s: float
) -> Iterator[dict[str, Any] | Frame | audio.Samples]:
    """Yield the file's metadata, the frames (n,H,W,3|4) of a window, {rate} of its audio and that in pieces (C,n).

    The rate is None without audio. Errors: NodeError for a file without video, with frames of changing size or larger
    than `pixels`.
    """
    window, known = Window(start_s, duration_s), video_facts(data, what)
    check_pixels(known.width, known.height, what, pixels)
    yield known.as_values()
    with open_container(data, what) as container:
        yield from batch_frames(_arrays(container, window, what, pixels))
    with open_container(data, what) as container:
        stream = sound_of(container)
        if stream is None:
            yield {"rate": None}
            return
        yield {"rate": int(stream.codec_context.sample_rate)}
        yield from audio.join_pieces(samples for samples, _ in video_sound(container, stream, window))


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
    """Return the first video stream. Errors: NodeError if there is none."""
    streams = [stream for stream in container.streams.video if stream.codec_context is not None]
    if not streams:
        raise NodeError(f"{what} has no pictures in it that can be read here")
    return streams[0]


def sound_of(container: Any) -> Any:
    """Return the last audio stream with a known codec, or None. Phones put theirs after one with an unknown codec."""
    return next((stream for stream in reversed(container.streams.audio) if stream.codec_context is not None), None)


def frames(container: Any, window: Window, what: str, pixels: int) -> Iterator[Any]:
    """Yield PyAV's frames of a window: those that begin in it. Damaged ones are left out.

    pixels: the limit of one frame. Errors: NodeError for a larger one.
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


def video_sound(container: Any, stream: Any, window: Window) -> Iterator[tuple[audio.Samples, int]]:
    """Yield the pieces (C,n) of a stream in a window, and the sample rate."""
    origin_s = begin_s(container)
    if window.start_s > WARM_UP_S:
        container.seek(int((window.start_s - WARM_UP_S + origin_s) / stream.time_base), stream=stream)
    begun, left = False, None
    for samples, at_s, rate in audio.audio_pieces(container, stream):
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
    """Return the start of a file's timestamps in seconds, which is not 0 in broadcast streams."""
    return (container.start_time or 0) / 1_000_000
