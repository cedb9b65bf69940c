"""Pinned host memory of any size, from which a GPU copies asynchronously.

torch allocates pinned memory in powers of two, which would waste much of a single large piece: it is allocated in
chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

CHUNK_BYTES = 2**28
ALIGNED = 16
"""Alignment of every tensor in a chunk, in bytes, as its dtype may require."""


def pinned(nbytes: int) -> Tensor:
    """Allocate a chunk. Errors: RuntimeError where the host cannot pin as much."""
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)


def _allocated(nbytes: int) -> int:
    return 1 << max(0, nbytes - 1).bit_length()


class Layout:
    """Places in chunks for tensors of the given bytes, by their numbers. required: tensors that have the first chunks.

    sizes: of the chunks in bytes, powers of two. first: how many of the chunks have required tensors.
    """

    def __init__(self, nbytes: Sequence[int], required: Sequence[bool], chunk_bytes: int = CHUNK_BYTES) -> None:
        used: list[int] = []
        self._places: dict[int, tuple[int, int]] = {}
        # The largest first: small ones then fill the gaps.
        for number in sorted(range(len(nbytes)), key=lambda number: (not required[number], -nbytes[number])):
            fits = (chunk for chunk, taken in enumerate(used) if taken + nbytes[number] <= chunk_bytes)
            if (chunk := next(fits, len(used))) == len(used):
                used.append(0)
            self._places[number] = chunk, used[chunk]
            used[chunk] += -(-nbytes[number] // ALIGNED) * ALIGNED
        self.sizes = [_allocated(size) for size in used]
        self.first = max((self.chunk(number) + 1 for number, needed in enumerate(required) if needed), default=0)

    def chunk(self, number: int) -> int:
        """Return the chunk that a tensor is in."""
        return self._places[number][0]

    def view(self, chunks: Sequence[Tensor], number: int, like: Tensor) -> Tensor:
        """Return a tensor's place in the chunks. like: of its shape and dtype."""
        chunk, at = self._places[number]
        return chunks[chunk][at : at + like.numel() * like.dtype.itemsize].view(like.dtype).view(like.shape)


class Chunks:
    """Chunks of pinned memory, which `allocate` takes. sizes: in bytes, rounded up to powers of two."""

    def __init__(self, asked: Iterable[int]) -> None:
        self.sizes = [_allocated(size) for size in asked]
        self._chunks: list[Tensor] = []

    @property
    def nbytes(self) -> int:
        """Total bytes of the chunks."""
        return sum(self.sizes)

    def allocate(self) -> None:
        """Allocate the memory. Errors: RuntimeError where the host cannot pin enough."""
        self._chunks = [pinned(size) for size in self.sizes]

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
