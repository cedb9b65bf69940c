"""Pinned host memory of any size, from which a card copies while the host does other work.

torch takes such memory in powers of two, so that much of a single large piece would be lost: it is taken in chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

CHUNK_BYTES = 2**28


class Chunks:
    """Chunks of pinned memory, which `allocate` takes. sizes: of each, in bytes, at least those that are asked for."""

    def __init__(self, asked: Iterable[int]) -> None:
        self.sizes = [1 << max(0, size - 1).bit_length() for size in asked]
        self._chunks: list[Tensor] = []

    @property
    def nbytes(self) -> int:
        """How much memory the chunks take."""
        return sum(self.sizes)

    def allocate(self) -> None:
        """Take the memory. Errors: RuntimeError where the host has not as much to pin."""
        self._chunks = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for size in self.sizes]


class PinnedMemory(Chunks):
    """Room for so many bytes in a row."""

    def __init__(self, nbytes: int, chunk_bytes: int = CHUNK_BYTES) -> None:
        super().__init__(min(chunk_bytes, nbytes - start) for start in range(0, nbytes, chunk_bytes))
        self._chunk_bytes = chunk_bytes

    def pieces(self, start: int, nbytes: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the bytes from one on as parts of chunks, each with how many come before it."""
        at = 0
        while at < nbytes:
            chunk, begins = divmod(start + at, self._chunk_bytes)
            piece = self._chunks[chunk][begins : min(self._chunk_bytes, begins + nbytes - at)]
            yield at, piece
            at += len(piece)

    def write(self, start: int, tensor: Tensor) -> None:
        """Write a tensor's numbers, in order, from a byte on."""
        numbers = tensor.contiguous().flatten().view(torch.uint8)
        for at, piece in self.pieces(start, len(numbers)):
            piece.copy_(numbers[at : at + len(piece)])

    def read(self, start: int, target: Tensor) -> None:
        """Have the device copy to a tensor of bytes on it what lies from a byte on; the host does not wait for it."""
        for at, piece in self.pieces(start, len(target)):
            target[at : at + len(piece)].copy_(piece, non_blocking=True)
