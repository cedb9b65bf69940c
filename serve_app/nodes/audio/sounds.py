"""The nodes that make AUDIO and change it. A sound that is None, as a mute video's, passes through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import torch

from serve_app.errors import NodeError
from serve_app.execution.size import allow
from serve_app.media.equalizer import equalized
from serve_app.media.resampling import length_at, resample
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Combo, Float, Int
from serve_app.nodes.sockets import AUDIO
from serve_app.values import Audio

SHELF_Q = 0.707
"""How steep a shelf of the equalizer is."""
LARGEST = 0xFFFFFFFFFFFFFFFF
MERGES: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "add": torch.add,
    "mean": lambda first, second: (first + second) / 2,
    "subtract": torch.sub,
    "multiply": torch.mul,
}


@node("EmptyAudio", "Empty Audio", category="audio", function="make")
def empty_audio(
    duration: Annotated[float, Float(60.0, min=0.0, max=LARGEST, step=0.01)],
    sample_rate: Annotated[int, Int(44100, min=1, max=192000, advanced=True)],
    channels: Annotated[int, Int(2, min=1, max=2, advanced=True)],
) -> AUDIO:
    """Return silence of a duration in seconds."""
    length = round(duration * sample_rate)
    allow(1, channels, length)
    return {"waveform": torch.zeros(1, channels, length), "sample_rate": sample_rate}


@node(
    "TrimAudioDuration",
    "Trim Audio Duration",
    category="audio",
    function="trim",
    description="Cuts a part out of the audio.",
)
def trim_audio_duration(
    audio: AUDIO | None,
    start_index: Annotated[float, Float(0.0, min=-LARGEST, max=LARGEST, step=0.01)],
    duration: Annotated[float, Float(60.0, min=0.0, step=0.01)],
) -> AUDIO | None:
    """Return a part of a sound, or what there is of it. Times are in seconds; a start below 0 counts from the end.

    Errors: NodeError if there is nothing. An empty sound stays as it is.
    """
    if audio is None or not audio["waveform"].shape[-1]:
        return audio
    length, rate = audio["waveform"].shape[-1], audio["sample_rate"]
    first = round(start_index * rate) + (length if start_index < 0 else 0)
    first = max(0, min(first, length))
    end = min(first + round(duration * rate), length)
    if first >= end:
        raise NodeError(
            f"there is nothing in {duration:g} s from second {start_index:g} on; the audio has {length / rate:g} s"
        )
    return {**audio, "waveform": audio["waveform"][..., first:end].clone()}


@node(
    "SplitAudioChannels",
    "Split Audio Channels",
    category="audio",
    function="split",
    return_names=("left", "right"),
    description="Separates the left and the right channel.",
)
def split_audio_channels(audio: AUDIO | None) -> tuple[AUDIO | None, AUDIO | None]:
    """The two channels of a sound. Split. Errors: NodeError for a sound that has not two channels."""
    if audio is None:
        return None, None
    waveform = audio["waveform"]
    if waveform.shape[1] != 2:
        raise NodeError(f"the audio has {waveform.shape[1]} channels; it must have 2")
    left, right = ({**audio, "waveform": waveform[:, channel : channel + 1].clone()} for channel in (0, 1))
    return left, right


@node(
    "JoinAudioChannels",
    "Join Audio Channels",
    category="audio",
    function="join",
    return_names=("audio",),
    description="Makes a stereo sound of a left and a right channel.",
)
def join_audio_channels(audio_left: AUDIO | None, audio_right: AUDIO | None) -> AUDIO | None:
    """A sound of two channels from two of one.

    Join, at the higher rate, the longer cut. Errors: NodeError for one with more channels than one.
    """
    if audio_left is None or audio_right is None:
        return audio_right if audio_left is None else audio_left
    for side, audio in (("left", audio_left), ("right", audio_right)):
        if audio["waveform"].shape[1] != 1:
            raise NodeError(f"audio_{side} has {audio['waveform'].shape[1]} channels; it must have 1")
    left, right, rate = _matched(audio_left, audio_right)
    length = min(left.shape[-1], right.shape[-1])
    return {"waveform": torch.cat([left[..., :length], right[..., :length]], dim=1), "sample_rate": rate}


@node(
    "AudioConcat",
    "Concatenate Audio",
    category="audio",
    function="concat",
    description="Puts audio2 after audio1, or before it.",
)
def audio_concat(
    audio1: AUDIO | None, audio2: AUDIO | None, direction: Annotated[str, Combo(["after", "before"], default="after")]
) -> AUDIO | None:
    """One sound after another.

    Join at the higher rate, a single channel twice. Errors: NodeError for other batches or channels.
    """
    if audio1 is None or audio2 is None:
        return audio2 if audio1 is None else audio1
    stereo = ({**audio, "waveform": _two_channels(audio["waveform"])} for audio in (audio1, audio2))
    first, second, rate = _matched(*stereo)
    first, second = _alike(first, second)
    allow(*first.shape[:2], first.shape[2] + second.shape[2])
    parts = (first, second) if direction == "after" else (second, first)
    return {"waveform": torch.cat(parts, dim=2), "sample_rate": rate}


@node("AudioMerge", "Merge Audio", category="audio", function="merge", description="Lays audio2 over audio1.")
def audio_merge(
    audio1: AUDIO | None, audio2: AUDIO | None, merge_method: Annotated[str, Combo(list(MERGES))]
) -> AUDIO | None:
    """Two sounds at once.

    Merge at the higher rate, as long as the first; what is louder than 1 is made quieter as a whole.

    One channel, or a batch of one, goes with each of the other's. Errors: NodeError for other numbers of them.
    """
    if audio1 is None or audio2 is None:
        return audio2 if audio1 is None else audio1
    first, second, rate = _matched(audio1, audio2)
    length = first.shape[-1]
    if not length or not second.shape[-1]:
        return {"waveform": first, "sample_rate": rate}
    second = torch.nn.functional.pad(second[..., :length], (0, max(0, length - second.shape[-1])))
    merged = MERGES[merge_method](*_alike(first, second))
    peak = merged.abs().max()
    return {"waveform": merged / peak if peak > 1.0 else merged, "sample_rate": rate}


@node(
    "AudioAdjustVolume",
    "Adjust Audio Volume",
    category="audio",
    function="adjust",
    description="Makes the audio louder or quieter by so many decibels.",
)
def audio_adjust_volume(audio: AUDIO | None, volume: Annotated[int, Int(1, min=-100, max=100)]) -> AUDIO | None:
    """A louder or quieter sound. Scale by 10^(volume/20)."""
    if audio is None or volume == 0:
        return audio
    return {**audio, "waveform": audio["waveform"] * 10 ** (volume / 20)}


@node("AudioEqualizer3Band", "Audio Equalizer (3-Band)", category="audio", function="equalize", experimental=True)
def audio_equalizer3_band(
    audio: AUDIO | None,
    low_gain_dB: Annotated[float, Float(0.0, min=-24.0, max=24.0, step=0.1)],
    low_freq: Annotated[int, Int(100, min=20, max=500)],
    mid_gain_dB: Annotated[float, Float(0.0, min=-24.0, max=24.0, step=0.1)],
    mid_freq: Annotated[int, Int(1000, min=200, max=4000)],
    mid_q: Annotated[float, Float(0.707, min=0.1, max=10.0, step=0.1)],
    high_gain_dB: Annotated[float, Float(0.0, min=-24.0, max=24.0, step=0.1)],
    high_freq: Annotated[int, Int(5000, min=1000, max=15000)],
) -> AUDIO | None:
    """A sound with its low, middle and high frequencies raised or lowered.

    Change each band whose gain is not 0. Errors: NodeError for a frequency that the rate cannot carry.
    """
    if audio is None:
        return None
    waveform, rate = audio["waveform"], audio["sample_rate"]
    if low_gain_dB:
        waveform = equalized(waveform, rate, "low shelf", low_gain_dB, low_freq, SHELF_Q)
    if mid_gain_dB:
        waveform = equalized(waveform, rate, "peak", mid_gain_dB, mid_freq, mid_q)
    if high_gain_dB:
        waveform = equalized(waveform, rate, "high shelf", high_gain_dB, high_freq, SHELF_Q)
    return {**audio, "waveform": waveform}


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
