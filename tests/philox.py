"""What torch draws on a card for a seed, computed on the CPU.

Sources: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 4.3 (Philox 4×32-10); Box and Muller
1958. Which of its numbers goes where is as cuRAND's normal distribution has it in torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)


def philox(counters: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """Return the four random words of each counter (4,n), as (4,n); each is 32 bits wide. key: 64 bits."""
    a, b, c, d = counters
    low, high = key & 0xFFFFFFFF, key >> 32
    for _ in range(_ROUNDS):
        first, second = a * np.uint64(_MULTIPLIERS[0]), c * np.uint64(_MULTIPLIERS[1])
        a, b, c, d = (
            (second >> np.uint64(32)) ^ b ^ np.uint64(low),
            second & _LOW,
            (first >> np.uint64(32)) ^ d ^ np.uint64(high),
            first & _LOW,
        )
        low, high = (low + _WEYL[0]) & 0xFFFFFFFF, (high + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([a, b, c, d])


class CardNoise:
    """A card's generator from its seed on: what `torch.randn` gives for it, call by call.

    It holds for up to as many numbers a call as the card has threads: 270,336 of an H100.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._calls = 0

    def randn(self, shape: Sequence[int]) -> Tensor:
        """Return the next call's numbers, float32."""
        threads = np.arange(prod(shape), dtype=np.uint64)
        none = np.zeros_like(threads)
        words = philox(np.stack([np.full_like(threads, self._calls), none, threads, none]), self._seed)
        self._calls += 1
        u, v = (words[i].astype(np.float64) for i in (0, 1))
        radius = np.sqrt(-2 * np.log((u + 0.5) / 2**32))
        drawn = radius * np.sin((v + 0.5) / 2**32 * 2 * np.pi)
        return torch.from_numpy(drawn.astype(np.float32)).reshape(tuple(shape))
