"""What the nodes of sound are asked, here and of ComfyUI: a name, the class and its inputs, sounds as their shapes.

ComfyUI's answers are golden/nodes_audio.npz, with torchaudio 2.11 beside it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch


class Sound(NamedTuple):
    """A sound to be made: batch, channels, samples, and their rate."""

    batch: int
    channels: int
    length: int
    rate: int


def sound(batch: int, channels: int, length: int, rate: int) -> dict[str, Any]:
    """Return noise of half the loudness, the same for the same shape."""
    values = np.random.default_rng(channels * length).standard_normal((batch, channels, length), dtype=np.float32)
    return {"waveform": torch.from_numpy(np.clip(values / 4, -0.5, 0.5)), "sample_rate": rate}


def described(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return inputs as ComfyUI's side reads them."""
    made = {}
    for name, value in inputs.items():
        if isinstance(value, Sound):
            made[name] = {
                "latent": {"waveform": {"values": sound(*value)["waveform"].tolist()}, "sample_rate": value.rate}
            }
        else:
            made[name] = value
    return made


STEREO = Sound(1, 2, 900, 8000)
MONO = Sound(1, 1, 700, 8000)
FAST = Sound(1, 2, 1100, 11025)
FLAT = {"low_gain_dB": 0.0, "low_freq": 100, "mid_gain_dB": 0.0, "mid_freq": 1000, "mid_q": 0.707}
FLAT |= {"high_gain_dB": 0.0, "high_freq": 3000}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "silence": ("EmptyAudio", {"duration": 0.0126, "sample_rate": 8000, "channels": 2}),
    "trim": ("TrimAudioDuration", {"audio": STEREO, "start_index": 0.0401, "duration": 0.05}),
    "trim from the end": ("TrimAudioDuration", {"audio": STEREO, "start_index": -0.05, "duration": 0.02}),
    "trim before the start": ("TrimAudioDuration", {"audio": STEREO, "start_index": -5.0, "duration": 0.02}),
    "trim over the end": ("TrimAudioDuration", {"audio": STEREO, "start_index": 0.1, "duration": 9.0}),
    "split": ("SplitAudioChannels", {"audio": STEREO}),
    "join": ("JoinAudioChannels", {"audio_left": MONO, "audio_right": Sound(1, 1, 500, 8000)}),
    "join of two rates": ("JoinAudioChannels", {"audio_left": MONO, "audio_right": Sound(1, 1, 900, 11025)}),
    "after": ("AudioConcat", {"audio1": STEREO, "audio2": MONO, "direction": "after"}),
    "before, of two rates": ("AudioConcat", {"audio1": STEREO, "audio2": FAST, "direction": "before"}),
    "add": ("AudioMerge", {"audio1": STEREO, "audio2": MONO, "merge_method": "add"}),
    "mean": ("AudioMerge", {"audio1": MONO, "audio2": STEREO, "merge_method": "mean"}),
    "subtract, of two rates": ("AudioMerge", {"audio1": FAST, "audio2": STEREO, "merge_method": "subtract"}),
    "multiply": ("AudioMerge", {"audio1": STEREO, "audio2": Sound(1, 2, 900, 8000), "merge_method": "multiply"}),
    "louder": ("AudioAdjustVolume", {"audio": STEREO, "volume": 7}),
    "quieter": ("AudioAdjustVolume", {"audio": STEREO, "volume": -30}),
    "flat": ("AudioEqualizer3Band", {"audio": STEREO, **FLAT}),
    "low": ("AudioEqualizer3Band", {"audio": STEREO, **FLAT, "low_gain_dB": 9.0, "low_freq": 300}),
    "mid": ("AudioEqualizer3Band", {"audio": STEREO, **FLAT, "mid_gain_dB": -12.0, "mid_q": 2.0}),
    "high": ("AudioEqualizer3Band", {"audio": STEREO, **FLAT, "high_gain_dB": 24.0}),
}
