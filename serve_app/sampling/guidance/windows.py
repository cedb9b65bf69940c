"""Context windows of an evaluation: cuts pieces along a video's frames, and blends what the network makes of the parts.

The rows of windows are pieces like any others, so they share forwards with those of other jobs. Sources: Qiu et al.
2023 (FreeNoise), arXiv:2310.15169; windows, weights and what each window reads are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, log2
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.nested_tensor import Samples
from serve_app.recipe.context import ContextWindows
from serve_app.sampling.forward import Inputs, Piece
from serve_app.sampling.samplers.evaluation import Evaluation
from serve_app.sampling.transfer import to_device

FRAMES = 2
"""The axis of a video's frames."""
LEAST = 1e-37
"""Weight of the first and last frame of a linear overlap, so that no frame is without any."""


@dataclass(frozen=True, slots=True)
class Window:
    """Frames that are evaluated together, of `total`. anchor: the one before them that is read too; None: none."""

    frames: tuple[int, ...]
    total: int
    anchor: int | None = None

    @property
    def read(self) -> tuple[int, ...]:
        """All frames that the network reads."""
        return self.frames if self.anchor is None else (self.anchor, *self.frames)

    def cut(self, whole: Tensor, kept: Sequence[int] = ()) -> Tensor:
        """Return the window's frames of what has a video's (B,C,T,…), with some of the whole in their places."""
        part = whole[:, :, list(self.read)]
        for place in kept:
            if place < part.shape[FRAMES]:
                part[:, :, place] = whole[:, :, place]
        return part


@runtime_checkable
class Windowed(Protocol):
    """Conditioning inputs that can be cut along a video's frames."""

    def in_window(self, window: Window, kept: Sequence[int]) -> Inputs:
        """Return the inputs for a window. kept: as `ContextWindows`."""
        ...


class WindowedEvaluation:
    """Cuts the pieces of one evaluation, and blends the outputs for them."""

    def __init__(self, patch: ContextWindows, step: int, total: int) -> None:
        self._patch = patch
        self._windows = [
            Window(frames, total, frames[0] - 1 if patch.anchored and frames[0] > 0 else None)
            for frames in windows(patch, total, step)
        ]

    @property
    def count(self) -> int:
        """How many pieces one is cut into."""
        return len(self._windows)

    def cut(self, piece: Piece) -> list[Piece]:
        """Return a piece's windows. Errors: NodeError for a network whose inputs cannot be cut."""
        if not isinstance(piece.inputs, Windowed):
            raise NodeError("context windows are for Wan's networks, and the model is another")
        return [
            replace(
                piece,
                x=window.cut(piece.x, self._patch.kept_latents),
                inputs=piece.inputs.in_window(window, self._patch.kept),
                model_input=None,
            )
            for window in self._windows
        ]

    def blended(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return what the windows' outputs (B,C,t,…) make of all frames."""
        first = outputs[0]
        total = self._windows[0].total
        made = first.new_zeros(*first.shape[:FRAMES], total, *first.shape[FRAMES + 1 :])
        weights = first.new_zeros(total, *(1,) * (first.ndim - FRAMES - 1))
        for window, output in zip(self._windows, outputs, strict=True):
            own = output[:, :, output.shape[FRAMES] - len(window.frames) :]
            weight = to_device(torch.tensor(weights_of(self._patch, window)), first.device).to(first.dtype)
            weight = weight.view(-1, *(1,) * (first.ndim - FRAMES - 1))
            made[:, :, list(window.frames)] += own * weight
            weights[list(window.frames)] += weight
        return made / weights


def needed_windows(patch: ContextWindows, latents: Tensor) -> Callable[[Evaluation], WindowedEvaluation] | None:
    """Return what cuts evaluations of latents (B,C,T,h,w) into windows; None where all frames fit into one.

    Errors: NodeError for latents of no video.
    """
    if latents.ndim != FRAMES + 3:
        raise NodeError("context windows are of a video's frames, and the latents to sample are no video's")
    total = latents.shape[FRAMES]
    if total <= patch.length:
        return None
    return lambda evaluation: WindowedEvaluation(patch, evaluation.step, total)


def longest_window(patch: ContextWindows | None, latents: Samples) -> Samples:
    """Return as many frames of latents (B,C,T,h,w) as one evaluation reads at most; all without windows."""
    if patch is None or not isinstance(latents, Tensor) or latents.ndim != FRAMES + 3:
        return latents
    # A stride leaves out frames, and adds none.
    return latents[:, :, : patch.length + patch.anchored]


def weights_of(patch: ContextWindows, window: Window) -> list[float]:
    """Return the weights of a window's frames."""
    count, frames = len(window.frames), window.frames
    match patch.fuse:
        case "flat":
            return [1.0] * count
        case "pyramid":
            return [float(min(at + 1, count - at)) for at in range(count)]
        case "relative":
            middle, half = (frames[0] + frames[-1]) / 2, (frames[-1] - frames[0] + 1e-2) / 2
            return [max(1e-2, 1 - abs(frame - middle) / half) for frame in frames]
    ramp = torch.linspace(LEAST, 1, patch.overlap)
    weights = torch.ones(count)
    if min(frames) > 0:
        weights[: patch.overlap] = ramp
    if max(frames) < window.total - 1 and patch.overlap:
        weights[-patch.overlap :] = ramp.flip(0)
    return [float(weight) for weight in weights]


def windows(patch: ContextWindows, total: int, step: int) -> list[tuple[int, ...]]:
    """Return the frames of each window of a video of `total` latent frames. step: of the sampler."""
    length = patch.length
    if total <= length:
        return [tuple(range(total))]
    if patch.schedule == "batched":
        return [tuple(range(first, min(first + length, total))) for first in range(0, total, length)]
    if patch.schedule == "standard_static":
        starts = [*range(0, total - length, length - patch.overlap), total - length]
        return [tuple(range(first, first + length)) for first in dict.fromkeys(starts)]
    moved = _halved(step)
    pad = round(total * moved)
    strides = min(patch.stride, ceil(log2(total / length)) + 1)
    looped = patch.schedule == "looped_uniform"
    end = total + pad - (0 if looped and patch.closed else patch.overlap)
    found = [
        [frame % total for frame in range(first, first + length * stride, stride)]
        for stride in (1 << power for power in range(strides))
        for first in range(int(moved * stride) + pad, end, length * stride - patch.overlap)
    ]
    return [tuple(frames) for frames in (found if looped else _straight(found, total, length))]


def _straight(found: list[list[int]], total: int, length: int) -> list[list[int]]:
    """Return windows of which none goes on at the beginning: such a one is moved to the end. Each is there once."""
    made: list[list[int]] = []
    at = 0
    while at < len(found):
        frames = found[at]
        over = next((frame for before, frame in pairwise(frames) if frame < before), None)
        if over is not None:
            from_start = [(frame - frames[0]) % total for frame in frames]
            found[at] = frames = [frame + total - 1 - from_start[-1] for frame in from_start]
            if over not in found[(at + 1) % len(found)]:
                found.insert(at + 1, list(range(over, over + length)))
        if frames not in made:
            made.append(frames)
        at += 1
    return made


def _halved(step: int) -> float:
    """Return a step's number with its bits mirrored at the point: 0, 1/2, 1/4, 3/4, 1/8 and so on."""
    share, weight = 0.0, 0.5
    while step:
        share, step, weight = share + weight * (step & 1), step >> 1, weight / 2
    return share


def shuffled(noise: Tensor, patch: ContextWindows, seed: int) -> Tensor:
    """Return a video's noise (B,C,T,…) in which later windows have the frames of earlier ones in another order."""
    generator = torch.Generator().manual_seed(seed)
    total, step = noise.shape[FRAMES], patch.length - patch.overlap
    noise = noise.clone()
    for first in range(0, total - patch.length, step):
        place = first + patch.length
        count = min(step, total - place)
        if count <= 0:
            break
        noise[:, :, place : place + count] = noise[:, :, torch.randperm(count, generator=generator) + first]
    return noise
