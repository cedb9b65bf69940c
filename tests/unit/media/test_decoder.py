"""Decoders, which are real processes here, and how they end."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from serve_app.config.limits import SizeLimits
from serve_app.errors import NodeError
from serve_app.limits import REFUSALS
from serve_app.media import decoder
from serve_app.media.decoder import DecoderLimits, DecoderProcess, Pending, decoding

BOUNDS = DecoderLimits(SizeLimits())


def picture(side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


def animation() -> bytes:
    """More frames than a pipe holds, of few bytes."""
    levels = [Image.new("L", (1024, 1024), level) for level in range(9)]
    buffer = io.BytesIO()
    levels[0].save(buffer, "PNG", save_all=True, append_images=levels[1:])
    return buffer.getvalue()


def read(answers: Iterator[decoder.Answer]) -> list[tuple[int, ...]]:
    return [answer.read().shape for answer in answers if isinstance(answer, Pending)]


def decodes() -> bool:
    with decoding("frames", [picture()], "it", BOUNDS) as answers:
        return read(answers) == [(1, 8, 8, 3)]


def read_after(meanwhile: Callable[[], None], bounds: DecoderLimits) -> None:
    """Read a file of which something happens once an array is about to come."""
    with decoding("video", [animation()], "it", bounds, start_s=0.0, duration_s=0.0) as answers:
        next(answers)
        array = next(answers)
        meanwhile()
        assert isinstance(array, Pending)
        array.read()
        read(answers)


def read_slowly(bounds: DecoderLimits) -> None:
    """Read a file, but wait a moment before its end."""
    read_after(lambda: time.sleep(0.1), bounds)


def test_a_decoder_that_dies_says_how_and_another_takes_its_place() -> None:
    decoder.give_back(decoder.take("it", BOUNDS), BOUNDS.owner)
    process = decoder.idle_decoders[-1].process
    with pytest.raises(NodeError, match="it cannot be read: its decoder ended by SIGSEGV"):
        read_after(lambda: os.killpg(process.pid, signal.SIGSEGV), BOUNDS)
    assert process.poll() is not None
    assert decodes()


def test_one_owner_has_all_decoders_but_one_at_most() -> None:
    ann, ben = DecoderLimits(SizeLimits(), owner="ann"), DecoderLimits(SizeLimits(), owner="ben")
    taken = [decoder.take("it", ann) for _ in range(decoder.AT_ONCE)]
    with pytest.raises(NodeError, match="nobody waits"):
        decoder.take("it", replace(ann, stopped=lambda: True))
    with decoding("frames", [picture()], "it", ben) as answers:
        assert read(answers) == [(1, 8, 8, 3)]
    for one in taken:
        decoder.give_back(one, "ann")
    with decoding("frames", [picture()], "it", ann) as answers:
        assert read(answers) == [(1, 8, 8, 3)]


def test_a_file_that_takes_too_long_is_given_up() -> None:
    with pytest.raises(NodeError, match=r"it takes longer to decode than limits\.decoder_s .* allows: 0\.05 s"):
        read_slowly(DecoderLimits(SizeLimits(decoder_s=0.05)))
    with pytest.raises(NodeError, match=r"it takes longer to decode than is allowed here: 0\.05 s"):
        read_slowly(DecoderLimits(SizeLimits(), seconds=0.05))
    assert decodes()


def test_a_file_that_nobody_waits_for_is_given_up() -> None:
    with pytest.raises(NodeError, match="nobody waits for it any more"):
        read_slowly(DecoderLimits(SizeLimits(), stopped=lambda: True))
    assert decodes()


def test_a_file_that_takes_too_much_memory_says_so() -> None:
    refusals = REFUSALS["limits.decoder_bytes"]
    bounds = DecoderLimits(SizeLimits(decoder_bytes=64 << 20))
    asked = {"format": "webp", "quality": 80, "colours": False}
    with (
        pytest.raises(NodeError, match=r"it needs more memory .* limits\.decoder_bytes .* allows, 67,108,864 bytes"),
        decoding("preview", [picture(6000)], "it", bounds, **asked) as answers,
    ):
        list(answers)
    assert REFUSALS["limits.decoder_bytes"] == refusals + 1
    assert decodes()


def test_a_file_that_does_not_fit_into_memory_is_given_up() -> None:
    with (
        pytest.raises(NodeError, match=r"it is larger than the memory it may take; limits\.decoder_bytes"),
        decoding("frames", [bytes(1 << 20) * 300], "it", DecoderLimits(SizeLimits(decoder_bytes=64 << 20))) as answers,
    ):
        list(answers)
    assert decodes()


def test_what_is_left_of_a_file_does_not_come_with_the_next() -> None:
    with decoding("video", [animation()], "it", BOUNDS, start_s=0.0, duration_s=0.0) as answers:
        next(answers)
    assert decodes()


def test_a_decoder_has_nothing_of_the_environment_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    one = DecoderProcess()
    assert read(one.answers("frames", [picture()], "it", BOUNDS, {})) == [(1, 8, 8, 3)]
    environment = Path(f"/proc/{one.process.pid}/environ").read_bytes()
    assert b"secret" not in environment
    folder = next(part[7:] for part in environment.split(b"\0") if part.startswith(b"TMPDIR="))
    assert Path(os.fsdecode(folder)).exists()
    one.close()
    assert not Path(os.fsdecode(folder)).exists()
