"""Ranks that are threads of one process, and exchange tensors through lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import torch
from torch import Tensor

LATE_S = 60.0
"""How long ranks wait for each other, on a busy machine."""


class Threads:
    """One of the ranks."""

    def __init__(self, rank: int, board: list[Any], barrier: Barrier) -> None:
        self.rank, self.size = rank, len(board)
        self._board, self._barrier = board, barrier

    def _shown(self, mine: Any) -> list[Any]:
        self._board[self.rank] = mine
        self._barrier.wait()
        shown = list(self._board)
        self._barrier.wait()
        return shown

    def all_to_all(self, sent: Sequence[Tensor], received: Sequence[Sequence[int]]) -> list[Tensor]:
        found = [of_rank[self.rank] for of_rank in self._shown(sent)]
        assert [tuple(one.shape) for one in found] == [tuple(shape) for shape in received]
        return found

    def all_gather(self, own: Tensor, sizes: Sequence[int], dim: int) -> Tensor:
        shown = self._shown(own)
        assert [one.shape[dim] for one in shown] == list(sizes)
        return torch.cat(shown, dim)


def on_ranks(size: int, work: Callable[[Threads], Any]) -> list[Any]:
    """Return what a function returns on each rank. Errors: of the first that fails; the others fail with it."""
    board, barrier = [None] * size, Barrier(size, timeout=LATE_S)

    def run(rank: int) -> Any:
        try:
            return work(Threads(rank, board, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(run, range(size)))
