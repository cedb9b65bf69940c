"""The nodes that make AUDIO and change it. A sound that is None, as a mute video's, passes through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from serve_app.errors import NodeError
from serve_app.execution.size import allow
from serve_app.media.equalizer import equalized
from serve_app.media.resampling import length_at, resample
from serve_app.nodes.dynamic_inputs import combo
from serve_app.values import Audio

LARGEST = 0xFFFFFFFFFFFFFFFF
AUDIO: tuple[str, dict[str, Any]] = ("AUDIO", {})
MERGES: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "add": torch.add,
    "mean": lambda first, second: (first + second) / 2,
    "subtract": torch.sub,
    "multiply": torch.mul,
}


class EmptyAudio:
    """Silence."""

    RETURN_TYPES = ("AUDIO",)
    FUNCTION = "make"
    CATEGORY = "audio"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "duration": ("FLOAT", {"default": 60.0, "min": 0.0, "max": LARGEST, "step": 0.01}),
                "sample_rate": ("INT", {"default": 44100, "min": 1, "max": 192000, "advanced": True}),
                "channels": ("INT", {"default": 2, "min": 1, "max": 2, "advanced": True}),
            }
        }

    def make(self, duration: float, sample_rate: int, channels: int) -> tuple[Audio]:
        """Return zeros of so many seconds."""
        length = round(duration * sample_rate)
        allow(1, channels, length)
        return ({"waveform": torch.zeros(1, channels, length), "sample_rate": sample_rate},)


class TrimAudioDuration:
    """A part of a sound."""

    RETURN_TYPES = ("AUDIO",)
    FUNCTION = "trim"
    CATEGORY = "audio"
    DESCRIPTION = "Cuts a part out of the audio."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "audio": AUDIO,
                "start_index": ("FLOAT", {"default": 0.0, "min": -LARGEST, "max": LARGEST, "step": 0.01}),
                "duration": ("FLOAT", {"default": 60.0, "min": 0.0, "step": 0.01}),
            }
        }

    def trim(self, audio: Audio | None, start_index: float, duration: float) -> tuple[Audio | None]:
        """Return so many seconds, or what there is of them; a start below 0 counts from the end.

        Errors: NodeError if there is nothing. An empty sound stays as it is.
        """
        if audio is None or not audio["waveform"].shape[-1]:
            return (audio,)
        length, rate = audio["waveform"].shape[-1], audio["sample_rate"]
        first = round(start_index * rate) + (length if start_index < 0 else 0)
        first = max(0, min(first, length))
        end = min(first + round(duration * rate), length)
        if first >= end:
            raise NodeError(
                f"there is nothing in {duration:g} s from second {start_index:g} on; the audio has {length / rate:g} s"
            )
        return ({**audio, "waveform": audio["waveform"][..., first:end].clone()},)


class SplitAudioChannels:
    """The two channels of a sound."""

    RETURN_TYPES = ("AUDIO", "AUDIO")
    RETURN_NAMES = ("left", "right")
    FUNCTION = "split"
    CATEGORY = "audio"
    DESCRIPTION = "Separates the left and the right channel."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"audio": AUDIO}}

    def split(self, audio: Audio | None) -> tuple[Audio | None, Audio | None]:
        """Split. Errors: NodeError for a sound that has not two channels."""
        if audio is None:
            return None, None
        waveform = audio["waveform"]
        if waveform.shape[1] != 2:
            raise NodeError(f"the audio has {waveform.shape[1]} channels; it must have 2")
        left, right = ({**audio, "waveform": waveform[:, channel : channel + 1].clone()} for channel in (0, 1))
        return left, right


class JoinAudioChannels:
    """A sound of two channels from two of one."""

    RETURN_TYPES = ("AUDIO",)
    RETURN_NAMES = ("audio",)
    FUNCTION = "join"
    CATEGORY = "audio"
    DESCRIPTION = "Makes a stereo sound of a left and a right channel."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"audio_left": AUDIO, "audio_right": AUDIO}}

    def join(self, audio_left: Audio | None, audio_right: Audio | None) -> tuple[Audio | None]:
        """Join, at the higher rate, the longer cut. Errors: NodeError for one with more channels than one."""
        if audio_left is None or audio_right is None:
            return (audio_right if audio_left is None else audio_left,)
        for side, audio in (("left", audio_left), ("right", audio_right)):
            if audio["waveform"].shape[1] != 1:
                raise NodeError(f"audio_{side} has {audio['waveform'].shape[1]} channels; it must have 1")
        left, right, rate = _matched(audio_left, audio_right)
        length = min(left.shape[-1], right.shape[-1])
        return ({"waveform": torch.cat([left[..., :length], right[..., :length]], dim=1), "sample_rate": rate},)


class AudioConcat:
    """One sound after another."""

    RETURN_TYPES = ("AUDIO",)
    FUNCTION = "concat"
    CATEGORY = "audio"
    DESCRIPTION = "Puts audio2 after audio1, or before it."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        direction = combo(["after", "before"], default="after")
        return {"required": {"audio1": AUDIO, "audio2": AUDIO, "direction": direction}}

    def concat(self, audio1: Audio | None, audio2: Audio | None, direction: str) -> tuple[Audio | None]:
        """Join at the higher rate, a single channel twice. Errors: NodeError for other batches or channels."""
        if audio1 is None or audio2 is None:
            return (audio2 if audio1 is None else audio1,)
        stereo = ({**audio, "waveform": _two_channels(audio["waveform"])} for audio in (audio1, audio2))
        first, second, rate = _matched(*stereo)
        first, second = _alike(first, second)
        allow(*first.shape[:2], first.shape[2] + second.shape[2])
        parts = (first, second) if direction == "after" else (second, first)
        return ({"waveform": torch.cat(parts, dim=2), "sample_rate": rate},)


class AudioMerge:
    """Two sounds at once."""

    RETURN_TYPES = ("AUDIO",)
    FUNCTION = "merge"
    CATEGORY = "audio"
    DESCRIPTION = "Lays audio2 over audio1."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        method = combo(list(MERGES))
        return {"required": {"audio1": AUDIO, "audio2": AUDIO, "merge_method": method}}

    def merge(self, audio1: Audio | None, audio2: Audio | None, merge_method: str) -> tuple[Audio | None]:
        """Merge at the higher rate, as long as the first; what is louder than 1 is made quieter as a whole.

        One channel, or a batch of one, goes with each of the other's. Errors: NodeError for other numbers of them.
        """
        if audio1 is None or audio2 is None:
            return (audio2 if audio1 is None else audio1,)
        first, second, rate = _matched(audio1, audio2)
        length = first.shape[-1]
        if not length or not second.shape[-1]:
            return ({"waveform": first, "sample_rate": rate},)
        second = torch.nn.functional.pad(second[..., :length], (0, max(0, length - second.shape[-1])))
        merged = MERGES[merge_method](*_alike(first, second))
        peak = merged.abs().max()
        return ({"waveform": merged / peak if peak > 1.0 else merged, "sample_rate": rate},)


class AudioAdjustVolume:
    """A louder or quieter sound."""

    RETURN_TYPES = ("AUDIO",)
    FUNCTION = "adjust"
    CATEGORY = "audio"
    DESCRIPTION = "Makes the audio louder or quieter by so many decibels."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"audio": AUDIO, "volume": ("INT", {"default": 1, "min": -100, "max": 100})}}

    def adjust(self, audio: Audio | None, volume: int) -> tuple[Audio | None]:
        """Scale by 10^(volume/20)."""
        if audio is None or volume == 0:
            return (audio,)
        return ({**audio, "waveform": audio["waveform"] * 10 ** (volume / 20)},)


class AudioEqualizer3Band:
    """A sound with its low, middle and high frequencies raised or lowered."""

    RETURN_TYPES = ("AUDIO",)
    FUNCTION = "equalize"
    CATEGORY = "audio"
    EXPERIMENTAL = True

    shelf_q = 0.707

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        gain = ("FLOAT", {"default": 0.0, "min": -24.0, "max": 24.0, "step": 0.1})
        return {
            "required": {
                "audio": AUDIO,
                "low_gain_dB": gain,
                "low_freq": ("INT", {"default": 100, "min": 20, "max": 500}),
                "mid_gain_dB": gain,
                "mid_freq": ("INT", {"default": 1000, "min": 200, "max": 4000}),
                "mid_q": ("FLOAT", {"default": 0.707, "min": 0.1, "max": 10.0, "step": 0.1}),
                "high_gain_dB": gain,
                "high_freq": ("INT", {"default": 5000, "min": 1000, "max": 15000}),
            }
        }

    def equalize(
        self,
        audio: Audio | None,
        low_gain_dB: float,
        low_freq: int,
        mid_gain_dB: float,
        mid_freq: int,
        mid_q: float,
        high_gain_dB: float,
        high_freq: int,
    ) -> tuple[Audio | None]:
        """Change each band whose gain is not 0. Errors: NodeError for a frequency that the rate cannot carry."""
        if audio is None:
            return (None,)
        waveform, rate = audio["waveform"], audio["sample_rate"]
        if low_gain_dB:
            waveform = equalized(waveform, rate, "low shelf", low_gain_dB, low_freq, self.shelf_q)
        if mid_gain_dB:
            waveform = equalized(waveform, rate, "peak", mid_gain_dB, mid_freq, mid_q)
        if high_gain_dB:
            waveform = equalized(waveform, rate, "high shelf", high_gain_dB, high_freq, self.shelf_q)
        return ({**audio, "waveform": waveform},)


def _two_channels(waveform: torch.Tensor) -> torch.Tensor:
    return waveform.repeat(1, 2, 1) if waveform.shape[1] == 1 else waveform


def _matched(first: Audio, second: Audio) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return two waveforms at the higher of their rates, and that."""
    rate = max(first["sample_rate"], second["sample_rate"])
    waveforms = []
    for audio in (first, second):
        *others, length = audio["waveform"].shape
        allow(*others, length_at(length, audio["sample_rate"], rate))
        waveforms.append(resample(audio["waveform"], audio["sample_rate"], rate))
    return waveforms[0], waveforms[1], rate


def _alike(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return them with as many sounds and channels as each other, where one has only one."""
    if any(a != b and 1 not in (a, b) for a, b in zip(first.shape[:2], second.shape[:2], strict=True)):
        sizes = [f"{waveform.shape[0]} of {waveform.shape[1]} channels" for waveform in (first, second)]
        raise NodeError(f"the audios are {sizes[0]} and {sizes[1]}; both must be alike, or one of them single")
    many, channels = (max(a, b) for a, b in zip(first.shape[:2], second.shape[:2], strict=True))
    return first.expand(many, channels, -1), second.expand(many, channels, -1)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "EmptyAudio": EmptyAudio,
    "TrimAudioDuration": TrimAudioDuration,
    "SplitAudioChannels": SplitAudioChannels,
    "JoinAudioChannels": JoinAudioChannels,
    "AudioConcat": AudioConcat,
    "AudioMerge": AudioMerge,
    "AudioAdjustVolume": AudioAdjustVolume,
    "AudioEqualizer3Band": AudioEqualizer3Band,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "EmptyAudio": "Empty Audio",
    "TrimAudioDuration": "Trim Audio Duration",
    "SplitAudioChannels": "Split Audio Channels",
    "JoinAudioChannels": "Join Audio Channels",
    "AudioConcat": "Concatenate Audio",
    "AudioMerge": "Merge Audio",
    "AudioAdjustVolume": "Adjust Audio Volume",
    "AudioEqualizer3Band": "Audio Equalizer (3-Band)",
}
