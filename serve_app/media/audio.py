"""AUDIO to and from files of sound: waveforms (B,C,T) float32, usually in −1…1, and their sample rate."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.media.container import Allow, encoding, layout_of, opened, pyav
from serve_app.media.resampling import resample

Samples = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

ENCODERS = {"flac": "flac", "mp3": "libmp3lame", "opus": "libopus", "aac": "aac"}
"""FFmpeg's encoder by codec; the first three are formats of files too."""
RATES: Mapping[str, Sequence[int]] = {
    "opus": (8000, 12000, 16000, 24000, 48000),
    "mp3": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
    "aac": (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000),
}
"""The sample rates that codecs have (RFC 6716; ISO/IEC 11172-3, 13818-3, 14496-3); others take any."""
FRAME = 1024
"""How many samples are handed to an encoder at a time."""


def decode(data: bytes, allow: Allow) -> tuple[Tensor, int]:
    """Return the first sound of a file, (1,C,T), and its sample rate.

    Errors: NodeError for data that holds no sound, and by `allow` once it has more samples than that lets pass.
    """
    with opened(data, "the file of sound") as container:
        if not container.streams.audio:
            raise NodeError("the file has no sound in it")
        stream = container.streams.audio[0]
        if stream.duration and stream.time_base and stream.codec_context is not None:
            allow(1, stream.channels, int(stream.duration * stream.time_base * stream.sample_rate))
        pieces = list(counted((samples for samples, _, _ in sound(container, stream)), allow))
        rate = int(stream.codec_context.sample_rate)
    if not pieces:
        raise NodeError("the file's sound has no samples")
    return torch.from_numpy(np.concatenate(pieces, axis=1))[None], rate


def sound(container: Any, stream: Any) -> Iterator[tuple[Samples, float, int]]:
    """Yield pieces (C,n) of a stream, the second each begins at, and the sample rate."""
    if stream.codec_context is None:
        raise NodeError("the file's sound is of a codec that is not known here")
    resampler = pyav().AudioResampler(format="fltp")
    for packet in container.demux(stream):
        for frame in packet.decode():
            for piece in resampler.resample(frame):
                start_s = 0.0 if piece.pts is None else float(piece.pts * (piece.time_base or stream.time_base))
                yield piece.to_ndarray(), start_s, int(piece.sample_rate)


def counted(pieces: Iterable[Samples], allow: Allow) -> Iterator[Samples]:
    """Yield the pieces (C,n), asking before each whether all so far may be kept."""
    length = 0
    for piece in pieces:
        length += piece.shape[1]
        allow(1, piece.shape[0], length)
        yield piece


def rate_for(codec: str, rate: int) -> int:
    """Return the sample rate for a sound of another: the same, or the next that the codec has, or its highest."""
    rates = RATES.get(codec, (rate,))
    return next((known for known in rates if known >= rate), rates[-1])


def encode(waveform: Tensor, rate: int, format: str, quality: str | None, text: Mapping[str, str]) -> bytes:
    """Return a file of a sound (C,T), values outside −1…1 clipped, with the text as its tags.

    format: flac (of 16 bits), mp3 or opus. quality: bits a second as "128k", or "V0", mp3's best variable rate; None is
    the encoder's own. A rate that the format has not becomes another. Errors: NodeError for a number of channels that
    the format has not.
    """
    made = rate_for(format, rate)
    waveform = resample(waveform, rate, made)
    buffer = io.BytesIO()
    what = f"a {format} file of {len(waveform)} channels at {made} Hz"
    with encoding(what), pyav().open(buffer, mode="w", format=format) as container:
        container.metadata.update(text)
        stream = container.add_stream(ENCODERS[format], rate=made, layout=layout_of(len(waveform)))
        if quality == "V0":
            stream.codec_context.qscale = True
        elif quality is not None:
            stream.bit_rate = int(quality.removesuffix("k")) * 1000
        for start in range(0, waveform.shape[1], FRAME):
            container.mux(stream.encode(frame(waveform[:, start : start + FRAME], made, start)))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def frame(samples: Tensor, rate: int, pts: int) -> Any:
    """Return PyAV's frame of samples (C,n). pts: where they begin, in samples."""
    values = samples.detach().float().cpu().contiguous().numpy()
    made = pyav().AudioFrame.from_ndarray(values, format="fltp", layout=layout_of(len(values)))
    made.sample_rate, made.pts = rate, pts
    return made
