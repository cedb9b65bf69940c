"""Blocks that stream without pinned memory of their own: read from their files each time, through a small buffer.

A host that lacks memory for all blocks of a model runs it nevertheless; what it has free is the files' page cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from serve_app.models.weights.upload import Copies

READERS = 4
"""Threads that read a block: one alone reads no faster than a core copies."""


@dataclass(frozen=True, slots=True, eq=False)
class _Source:
    """A weight as its file or the host's memory has it, and its offset in the block and its dtype there."""

    at: int
    tensor: Tensor
    dtype: torch.dtype

    def fill(self, memory: Tensor) -> None:
        nbytes = self.tensor.numel() * self.dtype.itemsize
        with torch.no_grad():
            memory[self.at : self.at + nbytes].view(self.dtype).view(self.tensor.shape).copy_(self.tensor)


class PageableBlock:
    """The weights of one block, most of them unread."""

    def __init__(self) -> None:
        self._sources: dict[int, _Source] = {}

    def add(self, at: int, tensor: Tensor, dtype: torch.dtype) -> None:
        """Add a weight. at: its offset in the block, in bytes; dtype: there."""
        self._sources[at] = _Source(at, tensor, dtype)

    @property
    def sources(self) -> Sequence[_Source]:
        """Its weights, in order."""
        return [*self._sources.values()]

    def weight(self, at: int) -> Tensor:
        """Return the weight at an offset, in memory. Errors: ModelFileError."""
        source = self._sources[at]
        return torch.empty(source.tensor.shape, dtype=source.dtype).copy_(source.tensor)


class Staging:
    """Pinned buffers, one for each slot of the GPU, in which blocks are read. nbytes: of the largest block."""

    def __init__(self, nbytes: int, slots: int, copies: Copies) -> None:
        self._copies = copies
        self._nbytes = nbytes
        self.buffers: list[Tensor] = []
        self._free: list[Callable[[], object]] = [lambda: None] * slots
        self._readers = ThreadPoolExecutor(READERS, "reads") if nbytes else None

    def filled(self, slot: int, block: PageableBlock) -> Tensor:
        """Return a slot's buffer with a block in it, once the copies have sent what it had before.

        Errors: ModelFileError where a file was changed.
        """
        assert self._readers is not None, "there are pageable blocks"
        if not self.buffers:
            self.buffers = [torch.empty(self._nbytes, dtype=torch.uint8, pin_memory=True) for _ in self._free]
        buffer = self.buffers[slot]
        self._free[slot]()
        for _ in self._readers.map(lambda source: source.fill(buffer), block.sources):
            pass
        return buffer

    def sent(self, slot: int) -> None:
        """Note that the copies have been asked to send a slot's buffer."""
        self._free[slot] = self._copies.mark()

    def leave(self) -> None:
        """Wait for the copies, and give the buffers back until a block is read again."""
        for wait in self._free:
            wait()
        self.buffers, self._free = [], [lambda: None] * len(self._free)

    def close(self) -> None:
        """Give the buffers back for good."""
        self.leave()
        if self._readers is not None:
            self._readers.shutdown()
