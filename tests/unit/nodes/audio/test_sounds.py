"""The nodes of sound, saved on a real volume and read back; what they make beside ComfyUI is in tests/parity."""

from __future__ import annotations

import io
import json
import math
import wave
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serve_app.config.limits import SizeLimits
from serve_app.errors import NodeError
from serve_app.execution.executing import Executing
from serve_app.execution.files import NodeFiles
from serve_app.execution.size import allow, bounds
from serve_app.media import audio, audio_file, loading
from serve_app.media.resampling import resample
from serve_app.nodes.registry import BUILTIN
from serve_app.store.files.reserved import Contents
from serve_app.store.files.store import AREAS, FileRef
from serve_app.store.files.volume import Volume
from serve_app.values import Audio

PROMPT = {"1": {"class_type": "SaveAudio"}}
EXTRA = {"workflow": {"nodes": [1]}}
HIDDEN = {"prompt": [PROMPT], "extra_pnginfo": [EXTRA]}


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume({area: tmp_path / area for area in AREAS})


def files(volume: Volume) -> NodeFiles:
    async def reserve(key: str, at_least: int, contents: Contents) -> tuple[int, bool]:
        return at_least, False

    return NodeFiles(volume, "job", "1", reserve)


def tone(seconds: float = 0.25, rate: int = 44100, channels: int = 2, batch: int = 1) -> Audio:
    t = torch.arange(round(seconds * rate)) / rate
    waves = [0.5 * torch.sin(2 * math.pi * 200 * (1 + channel) * t) for channel in range(channels)]
    return {"waveform": torch.stack(waves).repeat(batch, 1, 1), "sample_rate": rate}


def run(class_type: str, **inputs: Any) -> Any:
    node_class: Any = BUILTIN[class_type]
    return getattr(node_class(), node_class.FUNCTION)(**inputs)


def content(volume: Volume, item: dict[str, str]) -> bytes:
    with volume.open(FileRef.parse(f"{item['subfolder']}/{item['filename']} [{item['type']}]".lstrip("/"))) as file:
        return file.read()


def decoded(data: bytes) -> tuple[torch.Tensor, int]:
    return loading.load_sound(data, "the sound", bounds(), allow)


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Executing("job", "1", limits=SizeLimits(value_bytes=1_000_000))
    monkeypatch.setattr("serve_app.execution.size.executing", lambda: call)


@pytest.mark.parametrize(
    ("class_type", "inputs", "suffix", "rate", "mean_error"),
    [
        ("SaveAudio", {}, "flac", 44100, 1e-5),
        ("SaveAudioMP3", {"quality": ["V0"]}, "mp3", 44100, 5e-3),
        ("SaveAudioMP3", {"quality": ["320k"]}, "mp3", 44100, 5e-3),
        ("SaveAudioOpus", {"quality": ["320k"]}, "opus", 48000, 2e-2),
    ],
)
async def test_a_saved_sound_is_loaded_as_it_was(
    volume: Volume, class_type: str, inputs: dict[str, Any], suffix: str, rate: int, mean_error: float
) -> None:
    given = tone()
    saving = run(class_type, audio=[given], filename_prefix=["audio/x"], **inputs, store=[files(volume)], **HIDDEN)
    made = await saving
    assert made["result"] == ([given],)
    [item] = made["ui"]["audio"]
    assert item == {"filename": f"x_00001.{suffix}", "subfolder": "audio", "type": "output"}
    (loaded,) = await run("LoadAudio", audio=f"audio/x_00001.{suffix} [output]", store=files(volume))
    assert loaded["sample_rate"] == rate
    assert loaded["waveform"].dtype == torch.float32
    expected = resample(given["waveform"], 44100, rate)
    length = min(expected.shape[-1], loaded["waveform"].shape[-1])
    assert abs(expected.shape[-1] - loaded["waveform"].shape[-1]) < 2000
    assert (loaded["waveform"][..., :length] - expected[..., :length]).abs().mean() < mean_error


@pytest.mark.parametrize(
    ("format", "suffix"),
    [
        ({"format": ["flac"]}, "flac"),
        ({"format": ["mp3"], "quality": ["128k"]}, "mp3"),
        ({"format": ["opus"], "quality": ["64k"]}, "opus"),
    ],
)
async def test_a_chosen_format_carries_the_workflow(volume: Volume, format: dict[str, list[str]], suffix: str) -> None:
    saving = run(
        "SaveAudioAdvanced", audio=[tone()], filename_prefix=["x"], format=format, store=[files(volume)], **HIDDEN
    )
    [item] = (await saving)["ui"]["audio"]
    assert item["filename"] == f"x_00001.{suffix}"
    with av.open(io.BytesIO(content(volume, item))) as container:
        # Ogg keeps tags with the stream.
        tags = {**container.metadata, **container.streams.audio[0].metadata}
    tags = {key.lower(): value for key, value in tags.items()}
    assert json.loads(tags["prompt"]) == PROMPT
    assert json.loads(tags["workflow"]) == EXTRA["workflow"]


async def test_a_quality_is_bits_a_second(volume: Volume) -> None:
    sizes = []
    for quality in ("64k", "320k"):
        store = files(volume)
        inputs = {"audio": [tone(2)], "filename_prefix": [quality], "quality": [quality]}
        [item] = (await run("SaveAudioOpus", **inputs, store=[store], **HIDDEN))["ui"]["audio"]
        sizes.append(len(content(volume, item)))
    assert 3 * sizes[0] < sizes[1]


async def test_every_sound_of_every_batch_is_a_file_and_a_preview_is_in_temp(volume: Volume) -> None:
    sounds = [tone(batch=2), tone(rate=8000)]
    made = await run("PreviewAudio", audio=sounds, store=[files(volume)], **HIDDEN)
    shown = made["ui"]["audio"]
    assert [item["type"] for item in shown] == ["temp"] * 3
    assert [item["filename"][-11:] for item in shown] == ["_00001.flac", "_00002.flac", "_00003.flac"]
    assert [decoded(content(volume, item))[1] for item in shown] == [44100, 44100, 8000]
    assert made["result"] == (sounds,)


async def test_the_microphones_file_is_loaded_from_where_the_browser_put_it(volume: Volume) -> None:
    volume.write(FileRef("temp", "audio", "a.flac"), audio_file.encode(tone()["waveform"][0], 44100, "flac", None, {}))
    (loaded,) = await run("RecordAudio", audio="audio/a.flac [temp]", store=files(volume))
    assert loaded["waveform"].shape == (1, 2, 11025)


@pytest.mark.parametrize("class_type", ["SaveAudio", "SaveAudioMP3", "SaveAudioOpus", "PreviewAudio"])
async def test_the_sound_of_a_mute_video_is_not_saved(volume: Volume, class_type: str) -> None:
    named = {} if class_type == "PreviewAudio" else {"filename_prefix": ["x"]}
    with pytest.raises(NodeError, match="there is no audio to save"):
        await run(class_type, audio=[None], store=[files(volume)], **named, **HIDDEN)


@pytest.mark.parametrize(
    ("class_type", "inputs"),
    [
        ("TrimAudioDuration", {"audio": None, "start_index": 0.0, "duration": 1.0}),
        ("SplitAudioChannels", {"audio": None}),
        ("JoinAudioChannels", {"audio_left": None, "audio_right": None}),
        ("AudioConcat", {"audio1": None, "audio2": None, "direction": "after"}),
        ("AudioMerge", {"audio1": None, "audio2": None, "merge_method": "add"}),
        ("AudioAdjustVolume", {"audio": None, "volume": 3}),
    ],
)
def test_the_sound_of_a_mute_video_passes_through(class_type: str, inputs: dict[str, Any]) -> None:
    assert set(run(class_type, **inputs)) == {None}


@pytest.mark.parametrize(
    ("class_type", "names", "more"),
    [
        ("JoinAudioChannels", ("audio_left", "audio_right"), {}),
        ("AudioConcat", ("audio1", "audio2"), {"direction": "after"}),
        ("AudioMerge", ("audio1", "audio2"), {"merge_method": "add"}),
    ],
)
def test_of_two_sounds_one_that_is_missing_leaves_the_other(
    class_type: str, names: tuple[str, str], more: dict[str, str]
) -> None:
    there = tone()
    for name, other in (names, names[::-1]):
        assert run(class_type, **{name: there, other: None}, **more) == (there,)


@given(start=st.floats(-0.02, 0.02), duration=st.floats(0.0, 0.03))
def test_a_part_is_what_its_times_say(start: float, duration: float) -> None:
    rate, samples = 8000, torch.arange(100, dtype=torch.float32)
    whole = {"waveform": samples[None, None], "sample_rate": rate}
    first = max(0, min(round(start * rate) + (100 if start < 0 else 0), 100))
    wanted = samples[first : first + round(duration * rate)]
    if not len(wanted):
        with pytest.raises(NodeError, match=r"there is nothing .* the audio has 0\.0125 s"):
            run("TrimAudioDuration", audio=whole, start_index=start, duration=duration)
        return
    (part,) = run("TrimAudioDuration", audio=whole, start_index=start, duration=duration)
    assert torch.equal(part["waveform"][0, 0], wanted)
    assert part["waveform"].untyped_storage().nbytes() == part["waveform"].nbytes, "the rest would travel along"


@pytest.mark.parametrize(("rate", "to"), [(44100, 48000), (48000, 44100), (8000, 11025), (16000, 16001), (48000, 7)])
def test_a_tone_keeps_its_pitch_at_another_rate(rate: int, to: int) -> None:
    low = 0.5 if to == 7 else 200.0
    t = torch.arange(rate, dtype=torch.float64) / rate
    made = resample(torch.sin(2 * math.pi * low * t)[None], rate, to)
    expected = torch.sin(2 * math.pi * low * torch.arange(to, dtype=torch.float64) / to)
    assert made.shape == (1, to)
    inner = slice(to // 10 + 1, to - to // 10 - 1)
    assert (made[0, inner] - expected[inner]).abs().max() < (0.2 if to == 7 else 5e-3)


def test_a_rate_that_opus_has_not_becomes_the_next_and_other_codecs_keep_theirs() -> None:
    assert [audio.rate_for("opus", rate) for rate in (1, 8000, 8001, 44100, 96000)] == [
        8000,
        8000,
        12000,
        48000,
        48000,
    ]
    assert [audio.rate_for("mp3", rate) for rate in (44100, 96000)] == [44100, 48000]
    assert audio.rate_for("flac", 96000) == 96000


def test_channels_that_do_not_fit_are_errors() -> None:
    with pytest.raises(NodeError, match="has 1 channels; it must have 2"):
        run("SplitAudioChannels", audio=tone(channels=1))
    with pytest.raises(NodeError, match="audio_right has 2 channels; it must have 1"):
        run("JoinAudioChannels", audio_left=tone(channels=1), audio_right=tone())
    with pytest.raises(NodeError, match="1 of 2 channels and 1 of 6 channels"):
        run("AudioConcat", audio1=tone(), audio2=tone(channels=6), direction="after")
    with pytest.raises(NodeError, match="5 channels; files are written of 1, 2, 6"):
        audio_file.encode(tone(channels=5)["waveform"][0], 8000, "flac", None, {})


def test_a_band_above_what_the_rate_carries_is_an_error_and_one_without_gain_is_not() -> None:
    bands = {"low_gain_dB": 0.0, "low_freq": 100, "mid_gain_dB": 0.0, "mid_freq": 1000, "mid_q": 0.7, "high_freq": 5000}
    quiet = tone(rate=8000)
    (same,) = run("AudioEqualizer3Band", audio=quiet, high_gain_dB=0.0, **bands)
    assert torch.equal(same["waveform"], quiet["waveform"])
    with pytest.raises(NodeError, match="the high shelf is at 5000 Hz; a sound of 8000 Hz has frequencies below 4000"):
        run("AudioEqualizer3Band", audio=quiet, high_gain_dB=3.0, **bands)


@pytest.mark.usefixtures("limited")
def test_a_file_of_a_long_silence_is_refused_before_it_fills_memory() -> None:
    bomb = audio_file.encode(torch.zeros(2, 400_000), 44100, "flac", None, {})
    assert len(bomb) < 20_000
    with pytest.raises(NodeError, match=r"1×2×400000: 3,200,000 bytes; limits\.value_bytes .* allows 1,000,000"):
        decoded(bomb)
    with pytest.raises(NodeError, match=r"limits\.value_bytes"):
        run("EmptyAudio", duration=1e9, sample_rate=192000, channels=2)
    with pytest.raises(NodeError, match=r"limits\.value_bytes"):
        run("AudioMerge", audio1=tone(rate=44100), audio2=tone(0.01, rate=1_000_000), merge_method="add")


@pytest.mark.usefixtures("limited")
def test_a_head_that_says_too_little_does_not_hide_a_long_silence() -> None:
    bomb = bytearray(audio_file.encode(torch.zeros(2, 400_000), 44100, "flac", None, {}))
    # STREAMINFO's count of samples is the low 36 bits of bytes 13 to 17 of the block that begins at 8.
    bomb[21] &= 0xF0
    bomb[22:26] = (1000).to_bytes(4, "big")
    with pytest.raises(NodeError, match=r"limits\.value_bytes"):
        decoded(bytes(bomb))


@pytest.mark.parametrize("data", [b"", b"no sound"])
def test_what_is_no_file_of_sound_is_an_error(data: bytes) -> None:
    with pytest.raises(NodeError, match="the sound cannot be read"):
        decoded(data)


def test_a_sample_rate_that_nothing_has_is_refused() -> None:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 20_000_003, 0, "NONE", ""))
        file.writeframes(bytes(200))
    with pytest.raises(NodeError, match=r"the sound has 20,000,003 samples a second; limits\.sample_rate "):
        decoded(buffer.getvalue())
