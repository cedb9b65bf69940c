"""The sequence that MiniMax H3 attends over: which rows are in it, of which kind, and where they are in time and space.

Text is first, then what is given (frames to keep, references), then the sound and the video to make. Source: MiniMax
2026, MiniMax-H3; the numbers are ComfyUI's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, cycle, islice
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

PATCH = 2
"""Latent cells of a video's row along each side."""
STEREO = 2
FRAMES = (1, 4, 4, 4, 4)
"""Images of a video that its latent frames cover, over and over."""
TICKS = 5 / 3
"""Latents of sound in the time of one image: 40 and 24 a second."""
SPACE = 32.0
"""Extent of positions over the square root of an image's area."""

Kind: TypeAlias = Literal["text", "video", "sound", "given video", "given sound"]
Size: TypeAlias = tuple[int, int, int]
"""Latent frames, rows and columns of a video; both sides are even."""


@dataclass(frozen=True, slots=True)
class Given:
    """What the video is made from: an image, a sound, or a video with or without its sound.

    frame: number of the image of the video to make that it begins with; None: it is a reference, with a place in time
    of its own. video: the size of its latents, or None; sound: its number of latents, or 0.
    """

    frame: int | None
    video: Size | None = None
    sound: int = 0

    @property
    def duration(self) -> float:
        """How much later what follows a reference begins."""
        if self.video is None:
            return float(self.sound)
        still = self.video[0] == 1 and not self.sound
        return 1.0 if still else max(float(self.sound), sum(spans(self.video[0])))


class Segment(NamedTuple):
    """Rows of one kind in a sequence. at: their positions (n,3), float64."""

    kind: Kind
    at: Tensor

    @property
    def length(self) -> int:
        return len(self.at)


def even(size: Sequence[int]) -> Size:
    """Return the size of a video's latents with sides padded to whole rows."""
    frames, height, width = size
    return frames, height + height % PATCH, width + width % PATCH


@lru_cache(maxsize=16)
def segments(text: int, given: tuple[Given, ...], size: Size, sounds: int) -> Sequence[Segment]:
    """Return the segments of a sequence. text: its tokens; size: of the video; sounds: latents of the sound to make."""
    counted = torch.zeros(text, 3, dtype=torch.float64)
    counted[:, 0] = torch.arange(text, dtype=torch.float64)
    begins = text + sum(one.duration for one in given if one.frame is None)
    parts = [Segment("text", counted), *_kept(given, size, begins), *_references(given, size, float(text))]
    parts += [Segment("sound", _of_sound(begins, sounds, size)), Segment("video", _of_video(begins, size))]
    return parts


def spans(count: int) -> list[float]:
    """Return how long each of `count` latent frames is."""
    return [TICKS * frames for frames in islice(cycle(FRAMES), count)]


def _kept(given: Sequence[Given], size: Size, begins: float) -> Iterator[Segment]:
    """Yield the segments of what has a place in the video to make, each with its sound after it."""
    for one in given:
        if one.frame is not None:
            at = begins + TICKS * one.frame
            if one.video is not None:
                yield Segment("given video", _of_video(at, (one.video[0], *size[1:])))
            if one.sound:
                yield Segment("given sound", _of_sound(at, one.sound, size))


def _references(given: Sequence[Given], size: Size, at: float) -> Iterator[Segment]:
    """Yield the segments of references from a time on, each with its sound before it."""
    for one in given:
        if one.frame is None:
            own = one.video or size
            if one.sound:
                yield Segment("given sound", _of_sound(at, one.sound, own))
            if one.video is not None:
                yield Segment("given video", _of_video(at, own))
            at += one.duration


def _of_video(at: float, size: Size) -> Tensor:
    """Return the positions (n,3) of a video's rows from a time on, frame by frame."""
    frames, height, width = size
    times = torch.tensor([0.0, *accumulate(spans(frames))][:frames], dtype=torch.float64) + at
    across = torch.meshgrid(times, _axis(height, size), _axis(width, size), indexing="ij")
    return torch.stack(across, dim=-1).view(-1, 3)


def _of_sound(at: float, count: int, size: Size) -> Tensor:
    """Return the positions (2n,3) of a sound's rows from a time on: the left channel, then the right.

    They are at the first and the last column of a video of a size.
    """
    columns = _axis(size[2], size)
    made = torch.zeros(STEREO, count, 3, dtype=torch.float64)
    made[..., 0] = torch.arange(count, dtype=torch.float64) + at
    made[0, :, 2], made[1, :, 2] = columns[0], columns[-1]
    return made.view(-1, 3)


def _axis(side: int, size: Size) -> Tensor:
    """Return the positions of rows along a side; a square image's go from 0 to SPACE."""
    share, count = side / math.sqrt(size[1] * size[2]), side // PATCH
    return (torch.arange(count, dtype=torch.float64) * (share / count) + (1 - share) / 2) * SPACE
