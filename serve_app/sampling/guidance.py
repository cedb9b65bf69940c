"""Classifier-free guidance: which rows one evaluation asks of the network, and how the answers become one `denoised`.

Each entry of a conditioning is a piece of rows of its own; pieces of a branch are averaged by weight, then the branches
are combined by cfg. What restricts an entry (a region, a mask, a range of levels) belongs here: it changes which pieces
there are, what x they see and how they are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from serve_app.sampling.evaluation import Evaluation
from serve_app.values import Conditioning

Branch: TypeAlias = Literal["cond", "uncond"]


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One entry of a conditioning, ready for every evaluation of a run. context: (B,T,D). weight: its share."""

    branch: Branch
    context: Tensor
    weight: float


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """The rows one entry asks of the network in one evaluation. x: (B,C,h,w), all at sigma, beside entry.context."""

    x: Tensor
    sigma: float
    entry: Entry

    @property
    def rows(self) -> int:
        """How many rows of a forward it takes."""
        return self.x.shape[0]


def entries(branch: Branch, conditioning: Conditioning, batch: int, device: torch.device) -> tuple[Entry, ...]:
    """Return a conditioning's entries for `batch` latents. A cond of several rows is repeated and cut to the batch."""
    return tuple(
        Entry(branch, _to_batch(cond.to(device, torch.float32), batch), float(options.get("strength", 1.0)))
        for cond, options in conditioning
    )


def _to_batch(cond: Tensor, batch: int) -> Tensor:
    if cond.shape[0] == 1:
        return cond.expand(batch, -1, -1)
    return cond.repeat(-(-batch // cond.shape[0]), 1, 1)[:batch]


class Guidance:
    """The guidance of one run. positive, negative: CONDITIONING. cfg: the scale; at 1 the negative is not evaluated.

    Source: Ho and Salimans 2022, arXiv:2207.12598, equation 6 with w = cfg − 1.
    """

    def __init__(
        self, positive: Conditioning, negative: Conditioning, cfg: float, batch: int, device: torch.device
    ) -> None:
        self._cond = entries("cond", positive, batch, device)
        self._uncond = entries("uncond", negative, batch, device)
        self._cfg = cfg

    def pieces(self, evaluation: Evaluation) -> tuple[Piece, ...]:
        """Return what the network has to answer for an evaluation; () if no entry takes part."""
        asked = self._cond if self._skips_uncond(evaluation) else self._cond + self._uncond
        return tuple(Piece(evaluation.x, evaluation.sigma, entry) for entry in asked)

    def combine(
        self, evaluation: Evaluation, pieces: Sequence[Piece], answers: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Return (denoised, uncond) from the answers to `pieces`, in their order; uncond is None where it is skipped.

        A branch without entries, or without weight, is zero.
        """
        cond = _mean("cond", evaluation.x, pieces, answers)
        if self._skips_uncond(evaluation):
            return cond, None
        uncond = _mean("uncond", evaluation.x, pieces, answers)
        return torch.lerp(uncond, cond, self._cfg), uncond

    def _skips_uncond(self, evaluation: Evaluation) -> bool:
        return isclose(self._cfg, 1.0) and not evaluation.want_uncond


def _mean(branch: Branch, x: Tensor, pieces: Sequence[Piece], answers: Sequence[Tensor]) -> Tensor:
    weighted = [(p.entry.weight, a) for p, a in zip(pieces, answers, strict=True) if p.entry.branch == branch]
    total = sum(weight for weight, _ in weighted)
    if total == 0:
        return torch.zeros_like(x)
    if len(weighted) == 1:
        return weighted[0][1]
    mean = torch.zeros_like(x)
    for weight, answer in weighted:
        mean += answer * (weight / total)
    return mean
