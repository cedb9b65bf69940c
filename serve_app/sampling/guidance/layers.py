"""What a network's layers do otherwise for the rows of one run: a recipe's patches, and what guidance adds to them.

Values alone: `models` has the layers. Of a patch that acts between two noise levels, only the pieces between them know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from serve_app.recipe import DeepShrink, FreeU, HyperTile, NormalizedAttention, TokenMerging
from serve_app.sampling.schedules.levels import Levels, single


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """A patch that draws at random, by the generator of the run, once a layer for all rows that have it."""

    patch: HyperTile | TokenMerging
    generator: torch.Generator


@dataclass(frozen=True, slots=True)
class WithoutAttention:
    """The middle's self-attention gives each token its own value."""


@dataclass(slots=True, eq=False)
class AttentionMap:
    """What a forward leaves here: how much attention each token gets in the middle's first layer, (B,n) float32.

    It is the sum over queries of the mean over heads, so 1 is an equal share.
    """

    received: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Opposed:
    """One of two pieces whose self-attention is led from the one to the other."""

    patch: NormalizedAttention
    tie: object
    positive: bool


class LayerPatches:
    """The patches of one run that change layers. generator: makes the one that they draw from."""

    def __init__(self, patches: Iterable[Any], levels: Levels, generator: Callable[[], torch.Generator]) -> None:
        self._levels = levels
        self._patches: list[Any] = []
        drawing = [patch for patch in patches if isinstance(patch, HyperTile | TokenMerging)]
        shared = generator() if drawing else None
        for patch in patches:
            if isinstance(patch, HyperTile | TokenMerging) and shared is not None:
                self._patches.append(Drawn(patch, shared))
            elif isinstance(patch, FreeU | DeepShrink):
                self._patches.append(patch)

    def at(self, sigma: float) -> tuple[Any, ...]:
        """Return those that act at a level, in order."""
        return tuple(
            patch
            for patch in self._patches
            if not isinstance(patch, DeepShrink) or between(self._levels, patch.start_percent, patch.end_percent, sigma)
        )


def between(levels: Levels, start_percent: float, end_percent: float, sigma: float) -> bool:
    """Whether a level is between two shares of the sampling."""
    return levels.at_progress(end_percent) <= single(sigma) <= levels.at_progress(start_percent)
