"""One path of a Brownian motion, drawn from a seed where it is read: the same path whatever else is read of it.

The path is halved until a half ends where it is read; each half's seed names its place in the tree, so nothing needs to
be stored. Sources: Li et al. 2020, arXiv:2001.01328, section 4 (the virtual Brownian tree); seeds and resolution as
torchsde's BrownianTree has them, so that a seed gives the noise it gives there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import sqrt

import numpy as np
import torch
from torch import Tensor

DIGITS = 6
"""Decimals of the points it is read at; the finest halves are 1e-6 wide."""

KEPT = 48
"""How many points near the last ones stay in memory: about two ways from the whole path to one of its points."""


class BrownianPath:
    """W(t) − W(start) for start ≤ t ≤ end, float32; points beyond take the ends.

    shape: of a point. seed: 0 … 2⁶⁴ − 1. generator: of a seed, on the device of the points; the CPU if not given.
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
        self._last = self._drawn(self._seeds().generate_state(1)[0]) * sqrt(end - start)
        self._first = torch.zeros_like(self._last)
        self._kept: OrderedDict[tuple[int, int], Tensor] = OrderedDict()

    def at(self, t: float) -> Tensor:
        """Return the path's value at t."""
        t = min(max(round(t, DIGITS), self._start), self._end)
        start, end, first, last = self._start, self._end, self._first, self._last
        place, depth = 0, 0
        while start < t < end:
            middle = round((start + end) / 2, DIGITS)
            value = self._between(place, depth, start, middle, end, first, last)
            if t < middle:
                end, last, place = middle, value, 2 * place
            else:
                start, first, place = middle, value, 2 * place + 1
            depth += 1
        return first if t == start else last

    def _between(
        self, place: int, depth: int, start: float, middle: float, end: float, first: Tensor, last: Tensor
    ) -> Tensor:
        value = self._kept.get((place, depth))
        if value is None:
            left, width = middle - start, end - start
            drawn = self._drawn(self._seeds((place, depth)).generate_state(1)[0])
            value = first + (last - first) * (left / width) + drawn * sqrt(left * (end - middle) / width)
            if len(self._kept) == KEPT:
                self._kept.popitem(last=False)
            self._kept[place, depth] = value
        else:
            self._kept.move_to_end((place, depth))
        return value

    def _seeds(self, place: tuple[int, ...] = ()) -> np.random.SeedSequence:
        return np.random.SeedSequence(self._seed, spawn_key=place, pool_size=24)

    def _drawn(self, seed: np.uint32) -> Tensor:
        generator = self._generator(int(seed))
        return torch.randn(self._shape, generator=generator, device=generator.device)
