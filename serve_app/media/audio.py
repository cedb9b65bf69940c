"""Decoding of audio files to samples (C,T) of float32, usually in −1…1; and parameters of audio codecs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from serve_app.errors import NodeError
from serve_app.media.container import layout_of, open_container, pyav

Samples: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"

ENCODERS = {"flac": "flac", "mp3": "libmp3lame", "opus": "libopus", "aac": "aac"}
"""FFmpeg's encoder by codec; the first three are formats of files too."""
RATES: Mapping[str, Sequence[int]] = {
    "opus": (8000, 12000, 16000, 24000, 48000),
    "mp3": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
    "aac": (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000),
}
"""The sample rates that codecs support (RFC 6716; ISO/IEC 11172-3, 13818-3, 14496-3); others take any."""
FRAME = 1024
"""How many samples are handed to an encoder at a time."""


TOGETHER = 1 << 20
"""How many samples are sent in one message."""


def decode_audio(data: bytes, what: str, pixels: int) -> Iterator[dict[str, Any] | Samples]:
    """Yield {rate, shape} of a file's first audio stream, the shape as far as it is known, then pieces (C,n).

    Errors: NodeError for a file without audio.
    """
    with open_container(data, what) as container:
        if not container.streams.audio or (stream := container.streams.audio[0]).codec_context is None:
            raise NodeError(f"{what} has no sound in it that can be read here")
        rate = int(stream.codec_context.sample_rate)
        yield {"rate": rate, "shape": [stream.channels, int(_length_s(container, stream) * rate)]}
        yield from join_pieces(samples for samples, _, _ in audio_pieces(container, stream))


def _length_s(container: Any, stream: Any) -> float:
    """Return a stream's length in seconds by the file's head; 0 if it says none. Matroska has only the file's."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1_000_000


def audio_pieces(container: Any, stream: Any) -> Iterator[tuple[Samples, float, int]]:
    """Yield pieces (C,n) of a stream, the start of each in seconds, and the sample rate."""
    resampler = pyav().AudioResampler(format="fltp")
    for packet in container.demux(stream):
        for audio_frame in packet.decode():
            for piece in resampler.resample(audio_frame):
                start_s = 0.0 if piece.pts is None else float(piece.pts * (piece.time_base or stream.time_base))
                yield piece.to_ndarray(), start_s, int(piece.sample_rate)


def join_pieces(pieces: Iterable[Samples]) -> Iterator[Samples]:
    """Yield pieces (C,n) joined to larger ones."""
    held: list[Samples] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += piece.size
        if count >= TOGETHER:
            yield np.concatenate(held, axis=1)
            held, count = [], 0
    if held:
        yield np.concatenate(held, axis=1)


def rate_for(codec: str, rate: int) -> int:
    """Return the codec's sample rate for a given one: the same, or the next higher, or the codec's highest."""
    rates = RATES.get(codec, (rate,))
    return next((known for known in rates if known >= rate), rates[-1])


def audio_frame(samples: Samples, rate: int, pts: int) -> Any:
    """Return PyAV's frame of samples (C,n). pts: where they begin, in samples."""
    made = pyav().AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout_of(len(samples)))
    made.sample_rate, made.pts = rate, pts
    return made
