"""Encoding of waveforms (C,T) of float32, usually in −1…1, to audio files."""

from __future__ import annotations

import io
from collections.abc import Mapping

from torch import Tensor

from serve_app.media.audio import ENCODERS, FRAME, audio_frame, rate_for
from serve_app.media.container import encoding, layout_of, pyav
from serve_app.media.resampling import resample


def encode(waveform: Tensor, rate: int, format: str, quality: str | None, text: Mapping[str, str]) -> bytes:
    """Return an audio file of a waveform (C,T), values outside −1…1 clipped, with the text as its tags.

    format: flac (of 16 bits), mp3 or opus. quality: bits a second as "128k", or "V0", mp3's best variable rate; None is
    the encoder's default. An unsupported rate is resampled. Errors: NodeError for an unsupported number of channels.
    """
    made = rate_for(format, rate)
    samples = resample(waveform, rate, made).detach().float().cpu().numpy()
    buffer = io.BytesIO()
    what = f"a {format} file of {len(samples)} channels at {made} Hz"
    with encoding(what), pyav().open(buffer, mode="w", format=format) as container:
        container.metadata.update(text)
        stream = container.add_stream(ENCODERS[format], rate=made, layout=layout_of(len(samples)))
        if quality == "V0":
            stream.codec_context.qscale = True
        elif quality is not None:
            stream.bit_rate = int(quality.removesuffix("k")) * 1000
        for start in range(0, samples.shape[1], FRAME):
            container.mux(stream.encode(audio_frame(samples[:, start : start + FRAME], made, start)))
        container.mux(stream.encode(None))
    return buffer.getvalue()
