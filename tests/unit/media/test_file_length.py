"""Long sounds and videos, refused by the length that their heads say before a sample or a frame is decoded."""

from __future__ import annotations

import io
from collections.abc import Callable

import av
import numpy as np
import pytest
from PIL import Image

from serve_app.config.limits import SizeLimits
from serve_app.errors import NodeError
from serve_app.media import loading
from serve_app.media.decoder import DecoderLimits
from serve_app.media.video import Window
from serve_app.media.video_file import Style

WHAT = "the file 'long'"
RATE = 8000
BOUNDS = DecoderLimits(SizeLimits())


def sound(container: str, codec: str, seconds: int) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=RATE, layout="mono")
        assert isinstance(stream, av.AudioStream)
        for second in range(seconds):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, RATE), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = RATE, second * RATE
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def video(frames: int) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for _ in range(frames):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 32, 3), np.uint8), format="rgb24")))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def refusing(asked: list[tuple[int, ...]]) -> Callable[..., None]:
    """Return an `allow` that notes each shape and refuses it."""

    def allow(*shape: int) -> None:
        asked.append(shape)
        raise NodeError("it is too large")

    return allow


@pytest.mark.parametrize(("container", "codec"), [("wav", "pcm_s16le"), ("flac", "flac"), ("matroska", "pcm_s16le")])
def test_a_long_sound_is_refused_by_its_head(container: str, codec: str) -> None:
    asked: list[tuple[int, ...]] = []
    with pytest.raises(NodeError, match=r"^the file 'long' has 40 s to read, and it is too large$"):
        loading.load_sound(sound(container, codec, 40), WHAT, BOUNDS, refusing(asked))
    assert asked == [(1, 1, 40 * RATE)], "refused before anything arrives"


@pytest.mark.parametrize(("window", "seconds"), [(Window(), 20), (Window(5.0, 10.0), 10)])
def test_a_long_video_is_refused_by_its_head(window: Window, seconds: int) -> None:
    asked: list[tuple[int, ...]] = []
    with pytest.raises(NodeError, match=f"^the file 'long' has {seconds} s to read, and it is too large$"):
        loading.video(video(200), WHAT, window, BOUNDS, refusing(asked))
    assert asked == [(seconds * 10, 16, 32, 3)], "refused before a frame is decoded"


FEW = DecoderLimits(SizeLimits(batch=100))
TOO_MANY = r"frames; limits\.batch of the configuration allows 100$"


@pytest.mark.parametrize(("window", "says"), [(Window(), "20 s to read, 200"), (Window(5, 12), "12 s to read, 120")])
def test_a_video_of_too_many_frames_is_refused_by_its_head(window: Window, says: str) -> None:
    asked: list[tuple[int, ...]] = []
    for load in (
        lambda: loading.video(video(200), WHAT, window, FEW, refusing(asked)),
        lambda: loading.load_rewritten(video(200), WHAT, window, Style("mp4", "h264"), FEW),
    ):
        with pytest.raises(NodeError, match=f"^the file 'long' has {says} {TOO_MANY}"):
            load()
    assert asked == [], "refused before room is asked for"


def test_frames_that_no_head_counts_are_refused_as_they_come() -> None:
    buffer = io.BytesIO()
    shown = [Image.new("L", (16, 16), level) for level in range(200)]
    shown[0].save(buffer, "GIF", save_all=True, append_images=shown[1:])
    with pytest.raises(NodeError, match=f"^the file 'long' has at least [0-9]+ {TOO_MANY}"):
        loading.images(buffer.getvalue(), WHAT, FEW, lambda *_: None)


def test_a_long_video_whose_streams_are_copied_is_not_counted() -> None:
    copied = loading.load_rewritten(video(200), WHAT, Window(), Style("auto", "auto"), FEW)
    assert loading.load_facts(copied, WHAT, FEW).frames == 200
