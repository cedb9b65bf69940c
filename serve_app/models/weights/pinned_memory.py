"""Pinned host memory of any size, from which a GPU copies asynchronously.

torch allocates pinned memory in powers of two, which would waste much of a single large piece: it is allocated in
chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

CHUNK_BYTES = 2**28


class Chunks:
    """Chunks of pinned memory, which `allocate` takes. sizes: in bytes, rounded up to powers of two."""

    def __init__(self, asked: Iterable[int]) -> None:
        self.sizes = [1 << max(0, size - 1).bit_length() for size in asked]
        self._chunks: list[Tensor] = []

    @property
    def nbytes(self) -> int:
        """Total bytes of the chunks."""
        return sum(self.sizes)

    def allocate(self) -> None:
        """Allocate the memory. Errors: RuntimeError where the host cannot pin enough."""
        self._chunks = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for size in self.sizes]

    def close(self) -> None:
        """Give the memory back."""
        self.sizes, self._chunks = [], []


class PinnedMemory(Chunks):
    """A contiguous address range of `capacity` bytes over the chunks."""

    def __init__(self, nbytes: int, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.capacity = nbytes
        super().__init__(min(chunk_bytes, nbytes - start) for start in range(0, nbytes, chunk_bytes))
        self._chunk_bytes = chunk_bytes

    def pieces(self, start: int, nbytes: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the bytes from an offset on as parts of chunks, each with the number of bytes before it."""
        at = 0
        while at < nbytes:
            chunk, begins = divmod(start + at, self._chunk_bytes)
            piece = self._chunks[chunk][begins : min(self._chunk_bytes, begins + nbytes - at)]
            yield at, piece
            at += len(piece)

    def write(self, start: int, tensor: Tensor) -> None:
        """Write a tensor's numbers, in order, at an offset."""
        numbers = tensor.contiguous().flatten().view(torch.uint8)
        for at, piece in self.pieces(start, len(numbers)):
            piece.copy_(numbers[at : at + len(piece)])

    def read(self, start: int, target: Tensor) -> None:
        """Copy bytes from an offset to a byte tensor on the device, asynchronously."""
        for at, piece in self.pieces(start, len(target)):
            target[at : at + len(piece)].copy_(piece, non_blocking=True)
