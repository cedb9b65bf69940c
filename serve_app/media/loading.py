"""Loading files as tensors, decoded in a decoder process and size-checked before memory is allocated."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, TypeAlias

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.limits import refused
from serve_app.media.decoder import Answer, DecoderLimits, Pending, decoding
from serve_app.media.video import Facts, Window
from serve_app.media.video_file import Style

NO_MASK = (64, 64)
"""The size of the all-zero mask of an image without alpha."""

Allow: TypeAlias = Callable[..., None]
"""Refuses a float32 tensor of this shape that would be too large. Errors: NodeError."""


def images(data: bytes, what: str, bounds: DecoderLimits, allow: Allow, name: str = "") -> tuple[Tensor, Tensor]:
    """Return the frames (B,H,W,3) in 0…1 of an image file and their masks (B,H,W), 1 where it is transparent.

    Masks are (B,64,64) zeros without alpha. Pixels, frames and orientation are ComfyUI's. what: the file's name in
    messages. name: its own, to detect TGA. Errors: NodeError, as `decoding`, and of `allow`.
    """
    stack = _Stack(allow, what, bounds, masked=True)
    with decoding("frames", [data], what, bounds, name=name) as answers:
        _fill(stack, answers)
    colours, alpha = stack.tensors()
    return colours, torch.zeros(len(colours), *NO_MASK) if alpha is None else alpha.neg_().add_(1.0)


def load_picture(data: bytes, what: str, bounds: DecoderLimits, allow: Allow) -> Tensor:
    """Return the first frame (1,H,W,3) in 0…1, not rotated, for data sets. Errors: as `images`."""
    stack = _Stack(allow, what, bounds)
    with decoding("picture", [data], what, bounds) as answers:
        _fill(stack, answers)
    return stack.tensors()[0]


def load_painting(
    data: bytes, what: str, size: tuple[int, int], bounds: DecoderLimits, allow: Allow
) -> tuple[Tensor, Tensor]:
    """Return the first frame (1,H,W,3) in 0…1 and its alpha (1,H,W). size: (W, H), to which it is resized.

    Errors: as `images`.
    """
    width, height = size
    stack = _Stack(allow, what, bounds)
    with decoding("painting", [data], what, bounds, width=width, height=height) as answers:
        _fill(stack, answers)
    colours, alpha = stack.tensors()
    assert alpha is not None
    return colours, alpha


def load_sound(data: bytes, what: str, bounds: DecoderLimits, allow: Allow) -> tuple[Tensor, int]:
    """Return the first audio stream of a file, (1,C,T), and its sample rate. Errors: as `images`."""
    with decoding("sound", [data], what, bounds) as answers:
        said = _values(next(answers))
        rate = _allowed(said["rate"], what, bounds)
        _allow_length(allow, what, said["shape"][1] / rate if rate else 0.0, 1, *said["shape"])
        samples = _joined(answers, allow)
    if samples is None:
        raise NodeError(f"{what} has a sound without samples")
    return samples, rate


def load_facts(data: bytes, what: str, bounds: DecoderLimits) -> Facts:
    """Return a video's metadata, without decoding. Errors: NodeError, as `decoding`."""
    with decoding("facts", [data], what, bounds) as answers:
        return Facts.of(_values(next(answers)))


def video(
    data: bytes, what: str, window: Window, bounds: DecoderLimits, allow: Allow
) -> tuple[Tensor, Tensor | None, tuple[Tensor, int] | None]:
    """Return the frames (B,H,W,3) in 0…1 of a window, their alpha (B,H,W) and its sound (1,C,T) with its rate.

    None for a video without alpha, and for a mute one. Errors: NodeError for a window without frames, else as `images`;
    for too many frames and those of `allow` before a frame is decoded if the file has their number.
    """
    with decoding("video", [data], what, bounds, **asdict(window)) as answers:
        known = Facts.of(_values(next(answers)))
        count = _allow_frames(known, window, what, bounds)
        _allow_length(allow, what, window.within(known.duration_s), count, known.height, known.width, 3)
        stack = _Stack(allow, what, bounds)
        rate = _values(_fill(stack, answers))["rate"]
        if not stack:
            raise NodeError(f"{what} has no frames from second {window.start_s:g} on")
        samples = None
        if rate is not None:
            rate = _allowed(rate, what, bounds)
            samples = _joined(answers, allow)
    colours, alpha = stack.tensors()
    return colours, alpha, None if samples is None else (samples, rate)


def load_rewritten(data: bytes, what: str, window: Window, style: Style, bounds: DecoderLimits) -> bytes:
    """Return a window of a video as a new video.

    Errors: NodeError, as `video_file.rewrite` and `decoding`; where frames are decoded, for more than a batch may have.
    """
    asked = {**asdict(window), "style": {**asdict(style), "text": dict(style.text)}}
    with decoding("rewrite", [data], what, bounds, **asked) as answers:
        made = b""
        for answer in answers:
            if isinstance(answer, dict):
                _allow_frames(Facts.of(answer), window, what, bounds)
            elif isinstance(answer, bytes):
                made = answer
        return made


def _allow_frames(known: Facts, window: Window, what: str, bounds: DecoderLimits) -> int:
    """Return how many frames of a video are in a window, as its head says. Errors: NodeError for too many."""
    seconds = window.within(known.duration_s)
    count = known.frames if known.frames and not window else int(seconds * known.frame_rate)
    if (excess := bounds.sizes.excess("batch", count, "frames")) is not None:
        raise NodeError(f"{what} has {seconds:,.0f} s to read, {excess}")
    return count


def _allow_length(allow: Allow, what: str, seconds: float, *shape: int) -> None:
    """Refuse a file by the length that its head says, before it is decoded. Errors: NodeError, with the length."""
    try:
        allow(*shape)
    except NodeError as error:
        raise NodeError(f"{what} has {seconds:,.0f} s to read, and {error}") from None


class _Stack:
    """Collects arriving frames of a file. masked: without alpha each gets a mask of NO_MASK."""

    def __init__(self, allow: Allow, what: str, bounds: DecoderLimits, *, masked: bool = False) -> None:
        self._allow, self._what, self._sizes, self._masked = allow, what, bounds.sizes, masked
        self._batches: deque[Tensor] = deque()
        self._count = 0

    def __bool__(self) -> bool:
        return bool(self._count)

    def add(self, batch: Pending) -> None:
        """Add a batch (n,H,W,3|4). Errors: NodeError for too many; those of `allow`."""
        count, height, width, channels = batch.shape
        self._count += count
        if (excess := self._sizes.excess("batch", self._count, "frames")) is not None:
            raise NodeError(f"{self._what} has at least {excess}")
        self._allow(self._count, height, width, channels)
        if self._masked and channels == 3:
            self._allow(self._count, height * width * channels + math.prod(NO_MASK))
        self._batches.append(torch.from_numpy(batch.read()))

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        """Return the colours (B,H,W,3) and the alpha (B,H,W) in 0…1, and empty the stack."""
        _, height, width, channels = self._batches[0].shape
        scale = 255.0 if self._batches[0].dtype == torch.uint8 else 1.0
        colours = torch.empty(self._count, height, width, 3)
        alpha = torch.empty(self._count, height, width) if channels == 4 else None
        at = 0
        # Each is freed as soon as it is copied, so that not all are in memory twice.
        while self._batches:
            batch = self._batches.popleft()
            here = slice(at, at := at + len(batch))
            colours[here] = batch[..., :3]
            if alpha is not None:
                alpha[here] = batch[..., 3]
        return colours.div_(scale), None if alpha is None else alpha.div_(scale)


def _fill(stack: _Stack, answers: Iterator[Answer]) -> Answer | None:
    """Add arriving arrays; return the answer that follows them."""
    for answer in answers:
        if not isinstance(answer, Pending):
            return answer
        stack.add(answer)
    return None


def _joined(answers: Iterator[Answer], allow: Allow) -> Tensor | None:
    """Join arriving pieces (C,n) to audio (1,C,T); None without any."""
    pieces: list[Tensor] = []
    length = 0
    for answer in answers:
        assert isinstance(answer, Pending)
        length += answer.shape[1]
        allow(1, answer.shape[0], length)
        pieces.append(torch.from_numpy(answer.read()))
    return torch.cat(pieces, dim=1)[None] if pieces else None


def _allowed(rate: int, what: str, bounds: DecoderLimits) -> int:
    """Return a sample rate. Errors: NodeError for one that is too high."""
    most = bounds.sizes.sample_rate
    if rate > most:
        refused("limits.sample_rate")
        raise NodeError(
            f"{what} has {rate:,} samples a second; limits.sample_rate of the configuration allows {most:,}"
        )
    return rate


def _values(answer: Answer | None) -> dict[str, Any]:
    assert isinstance(answer, dict)
    return answer
