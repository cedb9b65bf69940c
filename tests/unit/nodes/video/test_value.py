"""The nodes of video, saved on a real volume and read back; what they make beside ComfyUI is in tests/parity."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
import torch
import zmq
from hypothesis import example, given
from hypothesis import strategies as st

from serve_app.config.limits import SizeLimits
from serve_app.errors import NodeError
from serve_app.execution.executing import Executing
from serve_app.execution.files import NodeFiles
from serve_app.execution.size import size_of
from serve_app.graph.parse import parse
from serve_app.graph.validate import validate
from serve_app.media.audio_file import encode
from serve_app.media.muxing import VideoTrack, codecs, mux
from serve_app.media.video_file import Style
from serve_app.nodes.registry import BUILTIN, specs
from serve_app.nodes.video.value import Video, VideoComponents, VideoFromComponents, VideoFromFile
from serve_app.store.files.reserved import Contents
from serve_app.store.files.store import AREAS, FileRef
from serve_app.store.files.volume import Volume
from serve_app.values import Audio
from tests.examples import fewer

PROMPT = {"1": {"class_type": "SaveVideo"}}
EXTRA = {"workflow": {"nodes": [1]}}
HIDDEN = {"prompt": [PROMPT], "extra_pnginfo": [EXTRA]}
FPS = 10
COUNT = 12


Limit = Callable[..., None]


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Limit:
    def set_to(**limits: int) -> None:
        call = Executing("job", "1", limits=SizeLimits(**limits))
        monkeypatch.setattr("serve_app.execution.size.executing", lambda: call)

    return set_to


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume({area: tmp_path / area for area in AREAS})


def files(volume: Volume) -> NodeFiles:
    async def reserve(key: str, at_least: int, contents: Contents) -> tuple[int, bool]:
        return at_least, False

    return NodeFiles(volume, "job", "1", reserve)


def images(count: int = COUNT, height: int = 32, width: int = 48) -> torch.Tensor:
    """Frames of one grey each, that says which one it is."""
    greys = (torch.arange(count) + 1) / (COUNT + 2)
    return greys[:, None, None, None].expand(count, height, width, 3).clone()


def numbers(frames: torch.Tensor) -> list[int]:
    """Which of `images` frames are."""
    return [round(float(frame.mean()) * (COUNT + 2)) - 1 for frame in frames]


def sound(seconds: float = COUNT / FPS, rate: int = 8000) -> Audio:
    """A slope, so that a sample says when it is."""
    return {"waveform": torch.linspace(-0.8, 0.8, round(seconds * rate)).repeat(1, 2, 1), "sample_rate": rate}


def video(audio: Audio | None = None, count: int = COUNT, **more: Any) -> Video:
    made = run("CreateVideo", images=images(count), fps=float(FPS), audio=audio, **more)
    assert isinstance(made[0], Video)
    return made[0]


def run(class_type: str, **inputs: Any) -> Any:
    node_class: Any = BUILTIN[class_type]
    return getattr(node_class(), node_class.FUNCTION)(**inputs)


ENCODED = VideoFromFile(video(sound()).encoded(Style()))


async def save(volume: Volume, *videos: Video, format: Any = None, **more: Any) -> dict[str, Any]:
    inputs = {"video": list(videos), "filename_prefix": ["video/x"], "format": format or {"format": ["auto"]}, **more}
    made = await run("SaveVideo", **inputs, store=[files(volume)], **HIDDEN)
    assert made["result"] == (list(videos),)
    ui: dict[str, Any] = made["ui"]
    return ui


def content(volume: Volume, item: dict[str, str]) -> bytes:
    with volume.open(FileRef.parse(f"{item['subfolder']}/{item['filename']} [{item['type']}]".lstrip("/"))) as file:
        return file.read()


def packets(data: bytes) -> list[bytes]:
    with av.open(io.BytesIO(data)) as container:
        return [bytes(packet) for packet in container.demux() if packet.size]


async def test_a_created_video_is_saved_loaded_and_taken_apart(volume: Volume) -> None:
    ui = await save(volume, video(sound()))
    assert ui["images"] == [{"filename": "x_00001_.mp4", "subfolder": "video", "type": "output"}]
    assert ui["animated"] == (True,)
    (loaded,) = await run("LoadVideo", file="video/x_00001_.mp4 [output]", store=files(volume))
    frames, audio, fps, depth, space = run("GetVideoComponents", video=loaded)
    assert (fps, depth, space) == (FPS, 8, "sRGB")
    assert frames.shape == (COUNT, 32, 48, 3)
    assert frames.dtype == torch.float32
    assert (frames - images()).abs().max() < 0.02
    expected = sound()["waveform"]
    assert audio["sample_rate"] == 8000
    assert (audio["waveform"][..., : expected.shape[-1]] - expected).abs().mean() < 0.02
    assert loaded.get_dimensions() == (48, 32)
    assert loaded.get_frame_count() == COUNT
    assert loaded.get_duration() == COUNT / FPS


def test_a_mute_video_has_no_sound() -> None:
    mute = VideoFromFile(video().encoded(Style()))
    assert run("GetVideoComponents", video=video())[1] is None
    assert run("GetVideoComponents", video=mute)[1] is None
    assert mute.as_trimmed(0.5).encoded(Style())


@pytest.mark.parametrize("format", ["auto", "mp4", "mkv", "webm"])
async def test_a_file_carries_the_workflow_that_made_it(volume: Volume, format: str) -> None:
    for index, one in enumerate((video(count=2), VideoFromFile(video(count=2).encoded(Style())))):
        prefix = [f"{format}{index}"]
        ui = await save(volume, one, format={"format": [format], "codec": {"codec": ["auto"]}}, filename_prefix=prefix)
        with av.open(io.BytesIO(content(volume, ui["images"][0]))) as container:
            tags = {key.lower(): value for key, value in container.metadata.items()}
            assert json.loads(tags["prompt"]) == PROMPT
            assert json.loads(tags["workflow"]) == EXTRA["workflow"]


async def test_a_codec_that_fits_keeps_the_stream_and_any_other_wish_does_not(volume: Volume) -> None:
    original = packets(ENCODED.data)
    kept: list[Any] = [
        {"format": ["auto"]},
        {"format": ["mp4"], "codec": {"codec": ["auto"]}},
        {"format": ["mp4"], "codec": {"codec": ["h264"], "encoding": {"encoding": ["auto"]}}},
    ]
    crf = {"encoding": ["re-encode"], "crf": [40.0], "color_space": ["auto"]}
    made: list[Any] = [
        {"format": ["mkv"], "codec": {"codec": ["auto"]}},
        {"format": ["mp4"], "codec": {"codec": ["av1"]}},
        {"format": ["mp4"], "codec": {"codec": ["h264"], "encoding": crf}},
    ]
    for index, format in enumerate(kept + made):
        ui = await save(volume, ENCODED, format=format, filename_prefix=[str(index)])
        assert (packets(content(volume, ui["images"][0])) == original) == (format in kept)
    (part,) = run("Video Slice", video=ENCODED, start_time=0.0, duration=0.5, strict_duration=True)
    ui = await save(volume, part, filename_prefix=["slice"])
    assert packets(content(volume, ui["images"][0])) != original


async def test_a_workflow_from_before_the_codec_was_a_part_of_the_format_is_taken(volume: Volume) -> None:
    inputs = {"video": ["1", 0], "filename_prefix": "x"}
    load = {"class_type": "LoadVideo", "inputs": {"file": "a.mp4"}}
    for wanted in ({"format": "auto", "codec": "auto"}, {"format": "mp4", "codec": "h264"}, {"format": "mp4"}):
        prompt = {"1": load, "2": {"class_type": "SaveVideo", "inputs": inputs | wanted}}
        assert validate(parse(prompt), specs(), lambda folder: ["a.mp4"]).problems == ()
    ui = await save(volume, video(count=2), format={"format": ["mkv"]}, codec={"codec": ["av1"]})
    with av.open(io.BytesIO(content(volume, ui["images"][0]))) as container:
        assert container.streams.video[0].codec.canonical_name == "av1"


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root's threads may be real-time")
def test_no_thread_comes_before_all_others_of_the_machine_where_av1_is_encoded() -> None:
    policies: list[set[int]] = []

    def look() -> None:
        policies.append({os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")})

    def frames() -> Iterator[Any]:
        for number in range(4):
            look()
            frame = av.VideoFrame(64, 64, "yuv420p")
            frame.pts, frame.duration = number, 1
            yield frame

    mux("mkv", {}, VideoTrack(frames(), "libsvtav1", {}, (64, 64), "yuv420p", Fraction(FPS), Fraction(1, FPS)), None)
    # Threads of ZeroMQ take the priority that glibc remembers of the thread that starts them.
    with zmq.Context() as context, context.socket(zmq.REP) as socket:
        socket.bind("tcp://127.0.0.1:*")
        look()
    assert policies == [{os.SCHED_OTHER}] * 5


@pytest.mark.parametrize("space", ["sRGB", "HDR", "HDR PQ"])
@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_a_colour_space_is_written_into_the_file_and_kept(space: str, codec: str) -> None:
    made = VideoFromFile(video(count=2).encoded(Style("mp4", codec, crf=5.0, color_space=space)))
    again = VideoFromFile(made.encoded(Style("mkv", codec, crf=20.0)))
    for one in (made, again):
        assert (one.get_color_space(), one.get_bit_depth()) == (space, 8 if space == "sRGB" else 10)
    other = "HDR" if space == "sRGB" else "sRGB"
    with pytest.raises(NodeError, match=f"the video is {space} and is not converted to {other}"):
        made.encoded(Style(color_space=other))


def test_ten_bits_are_asked_for_where_the_video_is_created() -> None:
    deep = video(count=2, bit_depth=10)
    assert VideoFromFile(deep.encoded(Style())).get_bit_depth() == 10
    assert run("GetVideoComponents", video=deep)[3] == 10


@given(
    start=st.integers(-COUNT * 2, COUNT * 2),
    duration=st.integers(0, COUNT * 2),
    strict=st.booleans(),
    file=st.booleans(),
)
@example(start=-3, duration=5, strict=True, file=False)
def test_a_part_has_the_frames_and_the_sound_that_its_times_say(
    start: int, duration: int, strict: bool, file: bool
) -> None:
    """In half frames, so that a part may begin within one."""
    whole: Video = ENCODED if file else video(sound())
    half = 0.5 / FPS
    begin = max(0, 2 * COUNT + start) if start < 0 else start
    left = 2 * COUNT - begin
    arguments = {"start_time": start * half, "duration": duration * half, "strict_duration": strict}
    # Of frames, as in ComfyUI, a part from the end may be asked for as long as the video is beyond it.
    lacks = left < duration and (file or start + duration > 2 * COUNT)
    if left <= 0 or (strict and lacks):
        with pytest.raises(NodeError, match=r"the video has 1\.2 s"):
            run("Video Slice", video=whole, **arguments)
        return
    end = min(begin + (duration or left), 2 * COUNT)
    wanted = [number for number in range(COUNT) if begin <= 2 * number < end]
    if not wanted:
        return  # between two frames there is nothing to decode
    (part,) = run("Video Slice", video=whole, **arguments)
    assert part.get_duration() == pytest.approx((end - begin) * half if file else len(wanted) / FPS)
    components = part.get_components()
    assert numbers(components.images) == wanted
    waveform = components.audio["waveform"]
    slope = -0.8 + 1.6 * begin / (2 * COUNT)
    assert waveform[0, 0, 80:160].mean() == pytest.approx(slope + 1.6 * 0.015 / 1.2, abs=0.02)
    if end < 2 * COUNT:
        assert waveform.shape[-1] == pytest.approx((end - begin) * half * 8000, abs=1)


@fewer(6)
@given(first=st.integers(0, 5), length=st.integers(3, 6), second=st.integers(0, 2))
def test_a_part_of_a_part_stays_within_it_also_once_it_is_a_file(first: int, length: int, second: int) -> None:
    part = ENCODED.as_trimmed(first / FPS, length / FPS).as_trimmed(second / FPS, 99.0, strict_duration=False)
    wanted = list(range(first + second, first + length))
    assert numbers(part.get_components().images) == wanted
    saved = VideoFromFile(part.encoded(Style()))
    assert numbers(saved.get_components().images) == wanted
    assert saved.get_duration() == pytest.approx(len(wanted) / FPS, abs=0.01)
    audio = saved.get_components().audio
    assert audio is not None
    assert audio["waveform"].shape[-1] == pytest.approx(len(wanted) / FPS * 8000, abs=2048)


def test_uneven_times_of_frames_are_kept() -> None:
    times = [0, 1, 5, 6, 11]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("h264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.max_b_frames = 0
        for time, image in zip(times, images(len(times)), strict=True):
            frame = av.VideoFrame.from_ndarray((image * 255).byte().numpy(), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    uneven = VideoFromFile(buffer.getvalue())
    with av.open(io.BytesIO(uneven.encoded(Style("mp4", crf=20.0)))) as container:
        assert [round(float(frame.time) * FPS) for frame in container.decode(video=0)] == times


def test_a_file_that_is_turned_is_turned_back() -> None:
    buffer = io.BytesIO()
    left = torch.zeros(32, 48, 3)
    left[:, :8] = 1.0
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.set_display_rotation(90)
        container.mux(stream.encode(av.VideoFrame.from_ndarray((left * 255).byte().numpy(), format="rgb24")))
        container.mux(stream.encode(None))
    turned = VideoFromFile(buffer.getvalue())
    for one in (turned, VideoFromFile(turned.encoded(Style(crf=1.0)))):
        frames = one.get_components().images
        assert frames.shape == (1, 48, 32, 3)
        assert frames[0, -6:].mean() > 0.9 or frames[0, :6].mean() > 0.9
        assert frames[0, 12:36].mean() < 0.1


def test_a_video_travels_whole_and_counts_what_it_takes() -> None:
    for one in (ENCODED.as_trimmed(0.2, 0.5), video(sound())):
        there = pickle.loads(pickle.dumps(one))
        assert there.get_duration() == one.get_duration()
        assert torch.equal(there.get_components().images, one.get_components().images)
    assert size_of(ENCODED) > len(ENCODED.data)
    assert size_of(video(sound())) > images().nbytes + sound()["waveform"].nbytes


def test_a_video_over_the_limits_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch, limit: Limit) -> None:
    limit(value_bytes=200_000)
    monkeypatch.setattr("serve_app.media.decoder.Pending.read", None)
    with pytest.raises(NodeError, match=r"12×32×48×3: 221,184 bytes; limits\.value_bytes .* allows 200,000"):
        run("GetVideoComponents", video=ENCODED)
    limit(image_pixels=1000)
    with pytest.raises(NodeError, match=r"the video has 48×32 pixels; limits\.image_pixels .* allows 1,000"):
        run("GetVideoComponents", video=ENCODED)


def test_a_part_within_the_limits_is_decoded_of_a_video_that_is_not(limit: Limit) -> None:
    limit(value_bytes=100_000)
    (part,) = run("Video Slice", video=ENCODED, start_time=0.3, duration=0.4, strict_duration=True)
    assert numbers(run("GetVideoComponents", video=part)[0]) == [3, 4, 5, 6]


def test_a_head_that_says_too_little_does_not_hide_the_frames(limit: Limit) -> None:
    data = bytearray(ENCODED.encoded(Style("mkv")))
    duration = data.index(b"\x44\x89\x88") + 3  # Matroska's element Duration, of eight bytes
    data[duration : duration + 8] = struct.pack(">d", 1.0)
    short = VideoFromFile(bytes(data))
    assert short.get_duration() == 0.001
    limit(value_bytes=200_000)
    with pytest.raises(NodeError, match=r"12×32×48×3: 221,184 bytes; limits\.value_bytes"):
        run("GetVideoComponents", video=short)


def test_a_list_of_files_does_not_open_what_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("secret.mp4").write_bytes(ENCODED.data)
    listing = b"ffconcat version 1.0\nfile 'secret.mp4'\n"
    with av.open(io.BytesIO(listing)) as opened:
        assert opened.streams.video, "PyAV alone opens what such a list names"
    with pytest.raises(NodeError, match="the video cannot be read"):
        VideoFromFile(listing).get_components()


def test_what_cannot_be_written_is_an_error_that_says_why() -> None:
    odd = VideoFromComponents(VideoComponents(images(1, 31, 48), Fraction(FPS)))
    with pytest.raises(NodeError, match="the frames are of 48×31 pixels; h264 takes even sides only"):
        odd.encoded(Style())
    with pytest.raises(NodeError, match="a WebM file holds no"):
        Style("webm", "h264")
    heard = VideoFromFile(encode(sound()["waveform"][0], 8000, "flac", None, {}))
    with pytest.raises(NodeError, match="the video has no pictures"):
        heard.get_components()


def test_a_container_takes_the_codecs_that_it_is_for() -> None:
    assert {"h264", "av1", "aac"} <= codecs("mp4")
    assert "gif" not in codecs("mp4")
    assert "h264" not in codecs("webm")


@pytest.mark.parametrize(("codec", "channels"), [("vp9", 3), ("vp9", 4), ("av1", 3), ("av1", 4)])
async def test_a_webm_is_mute_and_keeps_transparency_if_its_codec_does(
    volume: Volume, codec: str, channels: int
) -> None:
    clear = torch.cat([images(3), torch.full((3, 32, 48, 1), 0.5)], -1)[..., :channels]
    inputs = {"images": [clear], "filename_prefix": ["%width%x%height%"], "codec": [codec], "fps": [12.5], "crf": [8.0]}
    made = await run("SaveWEBM", **inputs, store=[files(volume)], **HIDDEN)
    [item] = made["ui"]["images"]
    assert item["filename"] == "48x32_00001_.webm"
    data = content(volume, item)
    read = VideoFromFile(data)
    assert read.get_frame_rate() == Fraction(25, 2)
    frames = read.get_components().images
    assert (frames - images(3)).abs().mean() < 0.02
    with av.open(io.BytesIO(data)) as container:
        assert not container.streams.audio
        stream = container.streams.video[0]
        assert json.loads(container.metadata["PROMPT"]) == PROMPT
        assert (stream.metadata.get("alpha_mode") == "1") == (codec == "vp9" and channels == 4)
