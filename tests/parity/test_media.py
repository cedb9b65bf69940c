"""What the nodes of sound make as ComfyUI's do, and files of sound and video as ComfyUI makes and reads them."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch

from serve_app.execution.size import allow, bounds
from serve_app.media import audio_file, loading
from serve_app.media.video_file import Style
from serve_app.nodes.registry import BUILTIN
from serve_app.nodes.video.value import VideoComponents, VideoFromComponents, VideoFromFile
from tests.parity.audio_cases import CASES, Sound, sound
from tests.parity.figures import Figures
from tests.parity.media_cases import FILES, SOUND_FILES, VIDEO_RATE, VIDEO_SOUND, WINDOWS, video_images

NODES = Figures("nodes_audio")
MEDIA = Figures("media")

ROUNDED = {"two rates": 2e-5, "low": 5e-6, "mid": 5e-6, "high": 5e-6}
"""What differs where torchaudio works out a filter, or filters, in float32 and we in float64."""


def file(name: str) -> bytes:
    return MEDIA[name].numpy().tobytes()


@pytest.mark.parametrize("name", CASES)
def test_a_node_makes_of_sounds_what_comfyui_makes(name: str) -> None:
    class_type, inputs = CASES[name]
    node_class: Any = BUILTIN[class_type]
    arguments = {key: sound(*value) if isinstance(value, Sound) else value for key, value in inputs.items()}
    outputs = getattr(node_class(), node_class.FUNCTION)(**arguments)
    assert len(outputs) == sum(key.startswith(f"{name}|") and key.endswith("waveform") for key in NODES.names)
    for slot, ours in enumerate(outputs):
        theirs = NODES[f"{name}|{slot}.waveform"]
        assert ours["sample_rate"] == NODES[f"{name}|{slot}.sample_rate"]
        tolerance = max((most for words, most in ROUNDED.items() if words in name), default=0)
        torch.testing.assert_close(ours["waveform"], theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("index", range(len(WINDOWS)))
def test_a_part_of_a_video_is_read_as_comfyui_reads_it(index: int) -> None:
    start, duration = WINDOWS[index]
    video = VideoFromFile(file("mp4"), start_time=start, duration=duration)
    read = video.get_components()
    assert read.audio is not None
    torch.testing.assert_close(read.images, MEDIA[f"{index}.images"], rtol=0, atol=1e-6)
    torch.testing.assert_close(read.audio["waveform"], MEDIA[f"{index}.waveform"], rtol=0, atol=1e-6)
    assert float(read.frame_rate) == MEDIA[f"{index}.rate"]
    assert video.get_duration() == pytest.approx(float(MEDIA[f"{index}.duration"]))


@pytest.mark.parametrize("name", FILES)
def test_a_video_is_written_as_comfyui_writes_it(name: str) -> None:
    container, codec = FILES[name]
    parts = VideoComponents(video_images(), Fraction(VIDEO_RATE), sound(*VIDEO_SOUND))
    ours = VideoFromFile(VideoFromComponents(parts).encoded(Style(container, codec)))
    theirs = VideoFromFile(file(name))
    assert ours.get_container_format() == theirs.get_container_format()
    assert ours.get_color_space() == theirs.get_color_space()
    assert ours.get_frame_rate() == theirs.get_frame_rate()
    made, expected = ours.get_components(), theirs.get_components()
    assert made.audio is not None
    assert expected.audio is not None
    assert made.audio["sample_rate"] == expected.audio["sample_rate"]
    # Another build of the encoders may choose otherwise in places.
    assert (made.images - expected.images).abs().mean() < 0.01
    assert made.audio["waveform"].shape == expected.audio["waveform"].shape
    assert (made.audio["waveform"] - expected.audio["waveform"]).abs().mean() < 0.01


@pytest.mark.parametrize("format", SOUND_FILES)
def test_a_sound_is_written_as_comfyui_writes_it(format: str) -> None:
    given = sound(*VIDEO_SOUND)
    made = audio_file.encode(given["waveform"][0], given["sample_rate"], format, SOUND_FILES[format], {})
    ours, theirs = (loading.load_sound(data, "the file", bounds(), allow) for data in (made, file(format)))
    assert ours[1] == theirs[1]
    tolerance = 0.0 if format == "flac" else 0.01
    assert ours[0].shape == theirs[0].shape
    assert (ours[0] - theirs[0]).abs().mean() <= tolerance
