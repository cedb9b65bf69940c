"""GPU memory budgets: how much of a device one process may use, and how much it uses now.

A process has a share of a card. A CUDA context takes a part of that which torch's allocator does not know of. The rest,
less a reserve, is what weights and forwards are planned within.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from serve_app.errors import ConfigError
from serve_app.models.forward import Replays

MB = 1024**2

CONTEXT_BYTES = 600 * MB
"""What a CUDA context with cuBLAS and cuDNN takes, per process: an estimate."""
RESERVE_BYTES = 400 * MB
"""What is kept free: for workspaces, for noise that is drawn while forwards run, and for fragmentation."""
CELL_BYTES = 24 * 1024
"""What a forward is assumed to need per latent cell before one has been measured: half as much again as live tensors
of SD 1.5 take in half precision, which is 16 KiB; those of SDXL take 10."""
WORKING_SHARE = 4
"""Forwards are left what `max_cells` need, but at most 1 / WORKING_SHARE of what they share with weights."""
HOST_SHARE = 2
"""On a CPU, weights take 1 / HOST_SHARE of the memory that the process may use."""
OFFLOAD_SHARE = 2
"""Weights in host memory, streamed to a card or evicted from it, take 1 / OFFLOAD_SHARE of the process's memory."""


@dataclass(frozen=True, slots=True)
class CardShare:
    """What one process may take of a card.

    total_bytes: the card's. allocator_bytes: the most that torch may take of it. planned_bytes: what weights and
    forwards are planned within.
    """

    total_bytes: int
    allocator_bytes: int
    planned_bytes: int

    def weights_bytes(self, configured: int | None, max_cells: int) -> int:
        """Return how many bytes weights may take. configured: None: all but what forwards need.

        Errors: ConfigError where that is more than planned_bytes.
        """
        if configured is None:
            return self.planned_bytes - min(max_cells * CELL_BYTES, self.planned_bytes // WORKING_SHARE)
        if configured > self.planned_bytes:
            raise ConfigError(
                f"weights_bytes is {configured:,}, and of this card's {self.total_bytes:,} bytes this process may plan "
                f"with {self.planned_bytes:,}, which forwards need a part of; `weights_bytes: auto` takes what there is"
            )
        return configured


def card_share(total_bytes: int, free_bytes: int, fraction: float) -> CardShare:
    """Return what a process with a fraction of a card may take. free_bytes: of the card, once it has a context.

    Errors: ConfigError where that is less than a context and the reserve take.
    """
    own = round(fraction * total_bytes) - CONTEXT_BYTES
    # Others may have taken more than their part, a desktop say, or a process that holds a whole card.
    planned = min(own, free_bytes) - RESERVE_BYTES
    if planned <= 0:
        raise ConfigError(
            f"num_gpus is {fraction:g}, and that share of this card's {total_bytes:,} bytes, of which {free_bytes:,} "
            f"are free, has no room beside the {CONTEXT_BYTES + RESERVE_BYTES:,} that a process needs before any model"
        )
    return CardShare(total_bytes, own, planned)


def host_weights_bytes(configured: int | None, process_bytes: int) -> int:
    """Return how many bytes weights may take on a CPU. process_bytes: of memory that the process may use."""
    return process_bytes // HOST_SHARE if configured is None else configured


def offload_bytes(configured: int | None, process_bytes: int, share: float = 1.0) -> int:
    """Return how many bytes of host memory weights of a card may take. process_bytes: as `host_weights_bytes`.

    share: of the host's cards that the process has.
    """
    return int(process_bytes * share) // OFFLOAD_SHARE if configured is None else configured


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
