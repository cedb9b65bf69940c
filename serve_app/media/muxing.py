"""Encoding and muxing of video frames and audio into one file."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from serve_app.media import audio
from serve_app.media.container import encoding, layout_of, pyav
from serve_app.media.priority import no_realtime_priority

FORMATS = {"mp4": "mp4", "mkv": "matroska", "webm": "webm"}
"""FFmpeg's names of containers by the suffix of their files."""
WEBM_CODECS = frozenset({"av1", "vp8", "vp9", "opus", "vorbis", "webvtt"})
"""Codecs that the WebM guidelines allow; the muxer accepts more."""

OPUS_RATE = 48000
"""The sample rate that Opus has in WebM, whatever the sound's own."""


@dataclass(frozen=True, slots=True)
class VideoTrack:
    """Frames of one size and format, and their encoder's options. time_base: the unit of their pts, in seconds."""

    frames: Iterable[Any]
    encoder: str
    options: Mapping[str, str]
    size: tuple[int, int]
    format: str
    rate: Fraction
    time_base: Fraction
    color: Mapping[str, int] = field(default_factory=dict)
    reorders: bool = True


@dataclass(frozen=True, slots=True)
class AudioTrack:
    """Audio in pieces (C,n)."""

    pieces: Iterable[audio.Samples]
    rate: int
    channels: int


def codecs(suffix: str) -> frozenset[str]:
    """Return the codecs that a container supports."""
    if suffix == "webm":
        return WEBM_CODECS
    with open_output(suffix, {}) as (made, _):
        # A container is written when it is closed, even an empty one, and needs a stream for that.
        made.add_stream("aac", rate=8000)
        return frozenset(made.supported_codecs)


def colored(target: Any, color: Mapping[str, int]) -> Any:
    """Set the colour properties of a frame or codec, and return it."""
    for name, value in color.items():
        setattr(target, name, value)
    return target


@contextmanager
def open_output(suffix: str, text: Mapping[str, str]) -> Iterator[tuple[Any, Path]]:
    """Open a new file of a container in a temporary folder. Its index is put first if it has one."""
    options = {"movflags": "use_metadata_tags+faststart"} if suffix == "mp4" else {}
    with tempfile.TemporaryDirectory() as folder, encoding("the video"):
        path = Path(folder, f"video.{suffix}")
        with pyav().open(str(path), mode="w", format=FORMATS[suffix], options=options) as made:
            made.metadata.update(text)
            yield made, path


def mux(suffix: str, text: Mapping[str, str], pictures: VideoTrack, sound: AudioTrack | None) -> bytes:
    """Encode frames and sound in the order of their times, the sound until the frames end."""
    with open_output(suffix, text) as (made, path):
        stream = made.add_stream(pictures.encoder, rate=pictures.rate)
        stream.width, stream.height = pictures.size
        stream.pix_fmt, stream.options = pictures.format, dict(pictures.options)
        if pictures.encoder == "libvpx-vp9":
            stream.bit_rate = 0  # else it would limit the quality
        context = colored(stream.codec_context, pictures.color)
        context.time_base = pictures.time_base
        if not pictures.reorders:
            context.max_b_frames = 0
        with no_realtime_priority():
            context.open()
        shown = _Shown(pictures)
        tracks = [_of(stream, shown.frames())]
        if sound is not None:
            codec, rate = ("opus", OPUS_RATE) if suffix == "webm" else ("aac", audio.rate_for("aac", sound.rate))
            track = made.add_stream(audio.ENCODERS[codec], rate=rate, layout=layout_of(sound.channels))
            tracks.append(_of(track, _heard(sound, shown)))
        for _, own, frame in heapq.merge(*tracks, key=lambda item: item[0]):
            made.mux(shown.timed(own.encode(frame)) if own is stream else own.encode(frame))
        made.mux(shown.timed(stream.encode(None)))
        if sound is not None:
            made.mux(track.encode(None))
        made.close()
        return path.read_bytes()


class _Shown:
    """Keeps the durations of frames in an encoder, which loses them."""

    def __init__(self, pictures: VideoTrack) -> None:
        self._pictures = pictures
        self._durations: dict[int, int] = {}
        self.end_s: float | None = None
        """The end of the last frame; None while there are more."""

    def frames(self) -> Iterator[tuple[float, Any]]:
        """Yield every frame with its time in seconds."""
        unit, end = self._pictures.time_base, 0
        for frame in self._pictures.frames:
            self._durations[frame.pts] = frame.duration
            end, frame.time_base = frame.pts + frame.duration, unit
            yield float(frame.pts * unit), frame
        self.end_s = float(end * unit)

    def timed(self, packets: Iterable[Any]) -> list[Any]:
        """Return the packets with the durations of their frames."""
        kept = list(packets)
        for packet in kept:
            packet.duration = self._durations.pop(packet.pts, packet.duration)
        return kept


def _heard(sound: AudioTrack, shown: _Shown) -> Iterator[tuple[float, Any]]:
    """Yield audio frames with their times in seconds, until the video ends."""
    at = 0
    for piece in sound.pieces:
        for begin in range(0, piece.shape[1], audio.FRAME):
            samples = piece[:, begin : begin + audio.FRAME]
            if shown.end_s is not None:
                samples = samples[:, : max(0, round(shown.end_s * sound.rate) - at)]
            if not samples.shape[1]:
                return
            yield at / sound.rate, audio.audio_frame(samples, sound.rate, at)
            at += samples.shape[1]


def _of(stream: Any, frames: Iterable[tuple[float, Any]]) -> Iterator[tuple[float, Any, Any]]:
    return ((at_s, stream, frame) for at_s, frame in frames)
