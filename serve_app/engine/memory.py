"""How much of a device's memory its process uses now, and how much is free for work; `memory_plan` plans it."""

from __future__ import annotations

from typing import Protocol

import torch

from serve_app.models.forward import Replays


class Memory(Protocol):
    """The memory of an engine's device, as its allocator reports it.

    It counts enqueued work, whether or not the device has done it, so a call never waits.
    """

    @property
    def planned_bytes(self) -> int:
        """What weights, forwards and all else may take together."""
        ...

    def allocated_bytes(self) -> int:
        """Return how many bytes are allocated."""
        ...

    def watch(self) -> None:
        """Reset `peak_bytes`."""
        ...

    def peak_bytes(self) -> int:
        """Return the most that was allocated at once since `watch`; replays count as what they had allocated before."""
        ...

    def replay_bytes(self) -> int:
        """Return how many of the allocated bytes are kept for CUDA graphs."""
        ...

    def cached_bytes(self) -> int:
        """Return how many free bytes the allocator caches, for each stream by itself, without those of CUDA graphs."""
        ...

    def empty(self) -> None:
        """Give cached bytes back to the device, but those of CUDA graphs."""
        ...

    def empty_with_replays(self) -> bool:
        """Give cached bytes back, and drop recorded forwards; return whether there were any."""
        ...


class EvictableWeights(Protocol):
    """The weights on a device, of which idle ones are evicted to make room for work."""

    @property
    def reserved_bytes(self) -> int:
        """How many bytes have been given room and may not be loaded yet."""
        ...

    def release(self, nbytes: int | None = None) -> int:
        """Evict idle weights until `nbytes` are free, or all of them; return how many bytes were freed."""
        ...


class CardMemory:
    """A card's memory, as torch's allocator in this process has it. replays: of its networks' forwards."""

    def __init__(self, device: torch.device, planned_bytes: int, replays: Replays) -> None:
        self._device = device
        self._planned_bytes = planned_bytes
        self._replays = replays
        self._watched = 0, 0

    @property
    def planned_bytes(self) -> int:
        return self._planned_bytes

    def allocated_bytes(self) -> int:
        return torch.cuda.memory_allocated(self._device) + self.replay_bytes()

    def watch(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)
        self._watched = self._replays.counters.replays, self.allocated_bytes()

    def peak_bytes(self) -> int:
        replays, held = self._watched
        if self._replays.counters.replays != replays:
            return held
        return torch.cuda.max_memory_allocated(self._device) + self.replay_bytes()

    def replay_bytes(self) -> int:
        return self._replays.idle_bytes()

    def cached_bytes(self) -> int:
        return torch.cuda.memory_reserved(self._device) - self.allocated_bytes()

    def empty(self) -> None:
        torch.cuda.empty_cache()

    def empty_with_replays(self) -> bool:
        dropped = self._replays.drop()
        self.empty()
        return dropped > 0


def room_bytes(memory: Memory, weights: EvictableWeights | None = None) -> int:
    """Return how many bytes of a device work may take; below 0 where too much is in use already."""
    return memory.planned_bytes - memory.allocated_bytes() - (0 if weights is None else weights.reserved_bytes)
