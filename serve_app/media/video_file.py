"""Writing of video files: from tensors, by transcoding another file, or by remuxing its streams."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from serve_app.errors import NodeError
from serve_app.media import video
from serve_app.media.container import open_container, pyav
from serve_app.media.filters import Filters
from serve_app.media.muxing import FORMATS, AudioTrack, VideoTrack, codecs, colored, mux, open_output
from serve_app.media.video import TRANSFERS, Facts, Window

if TYPE_CHECKING:
    from torch import Tensor  # decoder processes, which rewrite files, have no torch

ENCODERS = {"h264": "h264", "av1": "libsvtav1"}
COLOR = ("color_primaries", "color_trc", "colorspace", "color_range")
"""FFmpeg's names of a frame's colour properties (ITU-T H.273)."""
BT709, BT2020, LIMITED, FULL = 1, 9, 1, 2
"""Primaries, which are the numbers of their matrices too; the ranges 16…235 and 0…255."""


@dataclass(frozen=True, slots=True)
class Style:
    """The format of a video to write.

    container: mp4, mkv, webm or auto; codec: h264, av1 or auto, which keeps the streams of a file that can be kept and
    else is H.264 in MP4. crf: None is the encoder's default; color_space: sRGB, HDR or HDR PQ; either needs
    transcoding. text: its tags. Errors: NodeError for incompatible options.
    """

    container: str = "auto"
    codec: str = "auto"
    crf: float | None = None
    color_space: str | None = None
    text: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.container == "webm" and self.codec == "h264":
            raise NodeError("a WebM file holds no H.264; choose codec av1, or format mp4 or mkv")
        if self.color_space is not None and self.color_space not in TRANSFERS:
            raise NodeError(f"color_space {self.color_space!r} is none of {', '.join(TRANSFERS)}")

    @property
    def suffix(self) -> str:
        """The container with auto resolved, which is the file's suffix."""
        return "mp4" if self.container == "auto" else self.container

    @property
    def made(self) -> str:
        """The codec with auto resolved."""
        return self.codec if self.codec != "auto" else "av1" if self.container == "webm" else "h264"

    @property
    def options(self) -> dict[str, str]:
        """The encoder's options."""
        if self.crf is None:
            return {}
        return {"svtav1-params": "lossless=1"} if self.made == "av1" and self.crf == 0 else {"crf": str(self.crf)}


def from_frames(
    images: Tensor, rate: Fraction, sound: tuple[Tensor, int] | None, style: Style, bit_depth: int = 8
) -> bytes:
    """Return a video of frames (B,H,W,3) in 0…1, values outside clipped, and of audio (C,T) with its sample rate.

    The audio is cut at the end of the frames. Errors: NodeError for odd sides, as the codecs subsample colours, and for
    a number of channels without a layout.
    """
    height, width = images.shape[1:3]
    _check_even(width, height, style)
    rate = Fraction(round(rate * 1000), 1000)
    space = style.color_space or "sRGB"
    matrix, deep = (BT709, bit_depth >= 10) if space == "sRGB" else (BT2020, True)
    color = dict(zip(COLOR, (matrix, TRANSFERS[space], matrix, LIMITED), strict=True))
    format = "yuv420p10le" if deep else "yuv420p"
    frames = (_frame(image, deep).reformat(format=format, dst_colorspace=matrix) for image in _arrays(images[..., :3]))
    shown = _numbered(frames, color)
    pictures = VideoTrack(shown, ENCODERS[style.made], style.options, (width, height), format, rate, 1 / rate, color)
    heard = None
    if sound is not None:
        waveform, sample_rate = sound
        heard = AudioTrack([waveform.detach().float().cpu().numpy()], sample_rate, len(waveform))
    return mux(style.suffix, style.text, pictures, heard)


def webm_from_frames(images: Tensor, rate: Fraction, codec: str, crf: float, text: Mapping[str, str]) -> bytes:
    """Return a WebM without audio of frames (B,H,W,3|4). codec: vp9, which keeps transparency, or av1, of ten bits."""
    transparent = images.shape[-1] == 4 and codec == "vp9"
    format = "yuva420p" if transparent else "yuv420p10le" if codec == "av1" else "yuv420p"
    encoder, more = {"vp9": ("libvpx-vp9", {}), "av1": ("libsvtav1", {"preset": "6"})}[codec]
    height, width = images.shape[1:3]
    shown = _arrays(images if transparent else images[..., :3])
    frames = (_frame(image).reformat(format=format) for image in shown)
    pictures = VideoTrack(
        _numbered(frames), encoder, {"crf": str(crf), **more}, (width, height), format, rate, 1 / rate
    )
    return mux("webm", text, pictures, None)


def rewrite(
    data: bytes, what: str, pixels: int, start_s: float, duration_s: float, style: Mapping[str, Any]
) -> Iterator[dict[str, Any] | bytes]:
    """Yield a new video of a window of another, with its tags, overridden by the style's; before that the other's
    metadata, if its frames are decoded. style: the fields of a `Style`.

    pixels: the limit of one frame. Errors: NodeError for odd sides, for a file without video in the window, and for a
    colour space other than the file's, which would need conversion.
    """
    yield from _rewritten(data, Window(start_s, duration_s), Style(**style), what, pixels)


def _rewritten(data: bytes, window: Window, style: Style, what: str, pixels: int) -> Iterator[dict[str, Any] | bytes]:
    known = video.video_facts(data, what)
    if style.color_space is not None and known.color_space not in (None, style.color_space):
        raise NodeError(f"the video is {known.color_space} and is not converted to {style.color_space}; choose auto")
    with open_container(data, what) as source:
        text = {**source.metadata, **style.text}
        if not window and _fits(source, known, style):
            yield _copied(source, style.suffix, text)
            return
        yield known.as_values()
        yield _transcoded(data, source, known, window, style, text, what, pixels)


def _fits(source: Any, known: Facts, style: Style) -> bool:
    """Whether the streams of a file can be copied without transcoding."""
    names = [s.codec.canonical_name for s in (*source.streams.video, *source.streams.audio) if s.codec_context]
    return (
        style.crf is None
        and style.color_space is None
        and style.container in ("auto", *(name for name in FORMATS if FORMATS[name] in known.container.split(",")))
        and style.codec in ("auto", known.codec)
        and set(names) <= codecs(style.suffix)
    )


def _copied(source: Any, suffix: str, text: Mapping[str, str]) -> bytes:
    kept = codecs(suffix)
    with open_output(suffix, text) as (made, path):
        streams = {}
        for stream in (*source.streams.video, *source.streams.audio, *source.streams.subtitles):
            if stream.codec_context is not None and stream.codec.canonical_name in kept:
                streams[stream] = made.add_stream_from_template(template=stream, opaque=True)
        for packet in source.demux(*streams):
            if packet.dts is not None:
                packet.stream = streams[packet.stream]
                made.mux(packet)
        made.close()
        return path.read_bytes()


def _transcoded(
    data: bytes,
    source: Any,
    known: Facts,
    window: Window,
    style: Style,
    text: Mapping[str, str],
    what: str,
    pixels: int,
) -> bytes:
    """Transcode frame by frame, so that memory does not grow with the length."""
    stream = video.pictures_of(source, what)
    filters = Filters(stream.time_base)
    frames = map(filters.upright, video.frames(source, window, what, pixels))
    first = next(frames, None)
    if first is None:
        raise NodeError(f"{what} has no frames from second {window.start_s:g} on")
    _check_even(first.width, first.height, style)
    space = known.color_space or style.color_space
    deep = known.bit_depth >= 10 or space in ("HDR", "HDR PQ")
    format = "yuv420p10le" if deep else "yuv420p"
    color: dict[str, int] = {}
    if known.color_space is not None:
        color = {name: int(getattr(stream.codec_context, name)) for name in COLOR}
    elif space is not None:
        matrix = BT709 if space == "sRGB" else BT2020
        color = dict(zip(COLOR, (matrix, TRANSFERS[space], matrix, LIMITED), strict=True))
    step = max(1, round(1 / known.frame_rate / stream.time_base))
    shown = _timed(first, frames, format, color, step, tagged=known.color_space is not None)
    pictures = VideoTrack(
        *(shown, ENCODERS[style.made], style.options, (first.width, first.height), format),
        *(known.frame_rate, stream.time_base, color),
        reorders=False,  # MP4 counts durations in the order of decoding, which would move frames of uneven ones
    )
    with open_container(data, what) as again:
        heard = None
        track = video.sound_of(again)
        pieces = iter(()) if track is None else video.video_sound(again, track, window)
        begin = next(pieces, None)
        if begin is not None:
            samples, rate = begin
            heard = AudioTrack(itertools.chain([samples], (piece for piece, _ in pieces)), rate, len(samples))
        return mux(style.suffix, text, pictures, heard)


def _timed(
    first: Any, rest: Iterable[Any], format: str, color: Mapping[str, int], step: int, tagged: bool
) -> Iterator[Any]:
    """Yield frames in a format with their timestamps shifted to 0.

    step: the duration before a frame whose timestamp is missing or goes back. Errors: NodeError for a frame of another
    size, which the encoder would stretch.
    """
    origin, size, last = first.pts or 0, (first.width, first.height), -step
    for frame in itertools.chain([first], rest):
        if (frame.width, frame.height) != size:
            had, has = f"{size[0]}×{size[1]}", f"{frame.width}×{frame.height}"
            raise NodeError(f"the video's frames change from {had} to {has}; a file of one size cannot be made of them")
        pts, duration = frame.pts, frame.duration
        narrowed = {"src_color_range": FULL, "dst_color_range": LIMITED}
        full = int(frame.color_range) == FULL and not tagged
        frame = frame.reformat(format=format, **(narrowed if full else {}))
        pts = last + step if pts is None or pts - origin <= last else pts - origin
        frame.pts, frame.duration, last = pts, duration or step, pts
        # The decoded picture type would set the encoder's.
        frame.pict_type = 0
        yield colored(frame, color)


def _numbered(frames: Iterable[Any], color: Mapping[str, int] | None = None) -> Iterator[Any]:
    for number, frame in enumerate(frames):
        frame.pts, frame.duration = number, 1
        yield colored(frame, color or {})


def _check_even(width: int, height: int, style: Style) -> None:
    if width % 2 or height % 2:
        raise NodeError(f"the frames are of {width}×{height} pixels; {style.made} takes even sides only")


def _arrays(images: Tensor) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
    return (image.detach().float().cpu().numpy() for image in images)


def _frame(image: np.ndarray[Any, np.dtype[np.float32]], deep: bool = False) -> Any:
    """Return PyAV's frame of one image (H,W,3|4), of 8 or 16 bits."""
    # Truncated, not rounded, as for PNG.
    most = 65535 if deep else 255
    array = np.clip(image * np.float32(most), 0, most).astype(np.uint16 if deep else np.uint8)
    format = "rgb48le" if deep else "rgba" if image.shape[-1] == 4 else "rgb24"
    return pyav().VideoFrame.from_ndarray(array, format=format)
