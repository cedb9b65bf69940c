"""Patches of a network's layers for the rows of one run: those of a recipe, and those that guidance adds.

Values only: `models` has the layers. A patch between two noise levels is passed only with pieces between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from serve_app.recipe.guidance import NormalizedAttention
from serve_app.recipe.layers import DeepShrink, FreeU, HyperTile, SparseAttention, TokenMerging
from serve_app.sampling.schedules.levels import Levels, single


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """A patch that draws random numbers from the run's generator, once a layer for all its rows."""

    patch: HyperTile | TokenMerging
    generator: torch.Generator


@dataclass(frozen=True, slots=True)
class WithoutAttention:
    """The middle block's self-attention is replaced by the identity on values."""


@dataclass(slots=True, eq=False)
class AttentionMap:
    """A forward stores here the attention that each token receives in the middle's first layer, (B,n) float32.

    It is the sum over queries of the mean over heads, so 1 is an equal share.
    """

    received: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Opposed:
    """One of two pieces; self-attention of one is guided away from that of the other."""

    patch: NormalizedAttention
    tie: object
    positive: bool


class LayerPatches:
    """The layer patches of one run. generator: makes the random generator that they draw from."""

    def __init__(self, patches: Iterable[Any], levels: Levels, generator: Callable[[], torch.Generator]) -> None:
        self._levels = levels
        self._patches: list[Any] = []
        drawing = [patch for patch in patches if isinstance(patch, HyperTile | TokenMerging)]
        shared = generator() if drawing else None
        for patch in patches:
            if isinstance(patch, HyperTile | TokenMerging) and shared is not None:
                self._patches.append(Drawn(patch, shared))
            elif isinstance(patch, FreeU | DeepShrink | SparseAttention):
                self._patches.append(patch)

    def at(self, sigma: float) -> tuple[Any, ...]:
        """Return those active at a level, in order."""
        return tuple(
            patch
            for patch in self._patches
            if not isinstance(patch, DeepShrink | SparseAttention)
            or between(self._levels, patch.start_percent, patch.end_percent, sigma)
        )


def between(levels: Levels, start_percent: float, end_percent: float, sigma: float) -> bool:
    """Whether a level is between two shares of the sampling."""
    return levels.at_progress(end_percent) <= single(sigma) <= levels.at_progress(start_percent)
