"""A model of a card's allocator, and networks whose forwards take memory of it: as much as they say, and no more fits.

It fails as torch's does, with torch's error, and says what was taken at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.unit.engine.mixes import TinyBackbone


@dataclass
class Allocator:
    """A card's. held: by weights and all that stays; as `engine.memory.Memory`.

    kept: of that, for replays. taken: what each forward has asked for; failures: those that were refused. cached: of
    what work beside forwards took, which only such work can have again. emptied: how often that was given back for
    forwards because somebody said so; flushed: because there was no room else, as torch does by itself.
    """

    planned_bytes: int
    held: int = 0
    kept: int = 0
    peak: int = 0
    replays_dropped: int = 0
    taken: list[int] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)
    cached: int = 0
    emptied: int = 0
    flushed: int = 0

    def allocated_bytes(self) -> int:
        return self.held

    def watch(self) -> None:
        self.peak = self.held

    def peak_bytes(self) -> int:
        return self.peak

    def replay_bytes(self) -> int:
        return self.kept

    def cached_bytes(self) -> int:
        return self.cached

    def empty(self) -> None:
        self.emptied += 1
        self.cached = 0

    def empty_with_replays(self) -> bool:
        self.replays_dropped += 1
        self.cached = 0
        kept, self.kept = self.kept, 0
        self.held -= kept
        return kept > 0

    @contextmanager
    def using(self, nbytes: int) -> Iterator[None]:
        """Take so many bytes for a forward. Errors: torch.OutOfMemoryError."""
        self.flushed += self.cached > 0 and self.held + self.cached + nbytes > self.planned_bytes
        self.take(nbytes)
        self.taken.append(nbytes)
        try:
            yield
        finally:
            self.held -= nbytes

    def take(self, nbytes: int) -> None:
        """Take so many bytes. Errors: torch.OutOfMemoryError."""
        if self.held + self.cached + nbytes > self.planned_bytes:
            self.cached = 0
        if self.held + nbytes > self.planned_bytes:
            self.failures.append(nbytes)
            free = self.planned_bytes - self.held
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {nbytes} bytes, of which {free} are free."
            )
        self.held += nbytes
        self.peak = max(self.peak, self.held)

    def work_beside(self, nbytes: int) -> None:
        """Take so many bytes beside forwards, and give them back to where such work has them from."""
        if self.held + max(nbytes, self.cached) > self.planned_bytes:
            self.cached = 0
        self.peak = max(self.peak, self.held + nbytes)
        self.cached = max(self.cached, nbytes)


@dataclass
class IdleWeights:
    """Weights that nobody uses, of so many bytes each; as `engine.memory.Beside`."""

    allocator: Allocator
    sizes: list[int]
    asked: list[int | None] = field(default_factory=list)
    reserved_bytes: int = 0

    def __post_init__(self) -> None:
        self.allocator.held += sum(self.sizes)

    def release(self, nbytes: int | None = None) -> int:
        self.asked.append(nbytes)
        went = 0
        while self.sizes and (nbytes is None or went < nbytes):
            went += self.sizes.pop(0)
        self.allocator.held -= went
        return went


class OnAllocator(TinyBackbone):
    """A network that answers row by row, so that its bits do not depend on what shares a forward.

    a_cell: bytes that a forward takes for each; beside: what it takes besides.
    """

    def __init__(self, allocator: Allocator, a_cell: int, beside: int = 0, name: str = "tiny") -> None:
        super().__init__(name)
        self.allocator, self.a_cell, self.beside = allocator, a_cell, beside

    def answer(self, rows: Any) -> list[torch.Tensor]:
        cells = sum(piece.x[:, 0].numel() for piece in rows)
        with self.allocator.using(self.beside + self.a_cell * cells):
            self.calls.append((cells,))
            network = TinyBackbone(self.key)
            return [network.answer([piece])[0] for piece in rows]
