"""A Brownian path, a function of its seed: values do not depend on which others are read.

The path is bisected until a half ends at the point; each half's seed is its place in the tree, so nothing is stored.
Sources: Li et al. 2020, arXiv:2001.01328, section 4 (the virtual Brownian tree); seeds and resolution as in torchsde's
BrownianTree, so that a seed gives the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from serve_app.sampling.transfer import to_device

DIGITS = 6
"""Decimals to which points are rounded; the finest halves are 1e-6 wide."""

KEPT_BYTES = 64 * 2**20
"""Limit on the cached draws of one path; if those of two points exceed it, all are drawn again."""

_Place: TypeAlias = "tuple[int, int] | None"
"""Key of a draw in the tree: (place, depth) of a half's middle; None: the end of the whole path."""
_Weights: TypeAlias = "dict[_Place, float]"
"""A value of the path as a weighted sum of draws: the weight of each."""


class BrownianPath:
    """W(t) − W(start) for start ≤ t ≤ end, float32; points beyond are clamped.

    A point is a weighted sum of the draws on the way to it; the host computes the weights, so the device draws and adds
    up once. shape: of a point. seed: 0 … 2⁶⁴ − 1. generator: of a seed, on the device of the points; default: the CPU.
    """

    def __init__(
        self,
        shape: Sequence[int],
        start: float,
        end: float,
        seed: int,
        generator: Callable[[int], torch.Generator] | None = None,
    ) -> None:
        self._generator = generator or torch.Generator().manual_seed
        self._shape = tuple(shape)
        self._seed = seed
        self._start, self._end = round(start, DIGITS), round(end, DIGITS)
        self._whole: _Weights = {None: sqrt(end - start)}
        # Draws of the last sum: the next one often begins at its end.
        self.kept: dict[_Place, Tensor] = {}

    def at(self, t: float) -> Tensor:
        """Return the path's value at t."""
        return self._sum(self._weights(t))

    def between(self, s: float, t: float) -> Tensor:
        """Return the path's increment from s to t."""
        from_s, to_t = self._weights(s), self._weights(t)
        return self._sum({place: to_t.get(place, 0.0) - from_s.get(place, 0.0) for place in from_s | to_t})

    def _weights(self, t: float) -> _Weights:
        t = min(max(round(t, DIGITS), self._start), self._end)
        start, end = self._start, self._end
        first: _Weights = {}
        last = self._whole
        place, depth = 0, 0
        while start < t < end:
            middle = round((start + end) / 2, DIGITS)
            left, width = middle - start, end - start
            share = left / width
            value = {drawn: weight * share for drawn, weight in last.items()}
            for drawn, weight in first.items():
                value[drawn] = value.get(drawn, 0.0) + weight * (1 - share)
            value[place, depth] = sqrt(left * (end - middle) / width)
            if t < middle:
                end, last, place = middle, value, 2 * place
            else:
                start, first, place = middle, value, 2 * place + 1
            depth += 1
        return first if t == start else last

    def _sum(self, weights: _Weights) -> Tensor:
        if not weights:
            return torch.zeros_like(self._drawn(None))
        # In one order, so that the increment back is exactly the negative.
        places = sorted(weights, key=lambda place: (-1, 0) if place is None else (place[1], place[0]))
        drawn = torch.stack([self._drawn(place) for place in places])
        self.kept = dict(zip(places, drawn, strict=True)) if drawn.nbytes <= KEPT_BYTES else {}
        factors = to_device(torch.tensor([weights[place] for place in places], dtype=torch.float32), drawn.device)
        return (factors @ drawn.flatten(1)).view(self._shape)

    def _drawn(self, place: _Place) -> Tensor:
        if (kept := self.kept.get(place)) is not None:
            return kept
        key = () if place is None else place
        seeds = np.random.SeedSequence(self._seed, spawn_key=key, pool_size=24)
        generator = self._generator(int(seeds.generate_state(1)[0]))
        return torch.randn(self._shape, generator=generator, device=generator.device)
