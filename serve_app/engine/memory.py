"""The memory of a device: what one process may take of it, and what is taken now.

Of a card its process has a share, of which a CUDA context takes a part that torch's allocator knows nothing of. What is
left of it, but for a reserve, is what weights and forwards are planned within.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from serve_app.errors import ConfigError
from serve_app.models.forward import Replays

MB = 1024**2

CONTEXT_BYTES = 600 * MB
"""What a CUDA context takes with cuBLAS and cuDNN, of every process: an estimate."""
RESERVE_BYTES = 400 * MB
"""What is kept free of what is planned: for workspaces, for noise that is drawn beside forwards, and for memory in
pieces too small to use."""
CELL_BYTES = 24 * 1024
"""What a forward is taken to need for a latent cell before one has been measured: half as much again as live tensors
of SD 1.5 take in half precision, which is 16 KiB, and SDXL 10."""
WORKING_SHARE = 4
"""Forwards are left what `max_cells` need, but no more than one part in so many of what weights and they share."""
HOST_SHARE = 2
"""On a CPU, weights take one part in so many of what the process may use."""
OFFLOAD_SHARE = 2
"""Beside a card, weights that do not fit it, or were evicted from it, take one part in so many of that."""


@dataclass(frozen=True, slots=True)
class CardShare:
    """What one process may take of a card.

    total_bytes: the card's. allocator_bytes: the most that torch may take of it. planned_bytes: what weights and
    forwards are planned within.
    """

    total_bytes: int
    allocator_bytes: int
    planned_bytes: int

    def weights_bytes(self, asked: int | None, max_cells: int) -> int:
        """Return how much of it weights may take. asked: as configured; None: all but what forwards need.

        Errors: ConfigError where there is not as much as is asked for.
        """
        if asked is None:
            return self.planned_bytes - min(max_cells * CELL_BYTES, self.planned_bytes // WORKING_SHARE)
        if asked > self.planned_bytes:
            raise ConfigError(
                f"weights_bytes is {asked:,}, and of this card's {self.total_bytes:,} bytes this process may plan with "
                f"{self.planned_bytes:,}, which forwards need a part of; `weights_bytes: auto` takes what there is"
            )
        return asked


def card_share(total_bytes: int, free_bytes: int, fraction: float) -> CardShare:
    """Return what a process may take that has a fraction of a card. free_bytes: of the card, once it has its context.

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


def host_weights_bytes(asked: int | None, process_bytes: int) -> int:
    """Return how much memory weights may take on a CPU. asked: as configured; process_bytes: what the process may."""
    return process_bytes // HOST_SHARE if asked is None else asked


def offload_bytes(asked: int | None, process_bytes: int, share: float = 1.0) -> int:
    """Return how much host memory weights may take beside a card. asked, process_bytes: as above.

    share: how much of the host's cards the process has, beside others that have the rest.
    """
    return int(process_bytes * share) // OFFLOAD_SHARE if asked is None else asked


class Memory(Protocol):
    """The memory of an engine's device, as its allocator tells of it.

    It counts what the device has been asked for, whether or not it has done it, so nobody waits for the answer.
    """

    @property
    def planned_bytes(self) -> int:
        """What weights, forwards and all else may take together."""
        ...

    def held_bytes(self) -> int:
        """Return what is taken now."""
        ...

    def watch(self) -> None:
        """Let `peak_bytes` begin anew."""
        ...

    def peak_bytes(self) -> int:
        """Return the most that was taken at once since `watch`; of what was replayed, no more than was taken before."""
        ...

    def replay_bytes(self) -> int:
        """Return how much of what is taken is kept for forwards that are replayed."""
        ...

    def cached_bytes(self) -> int:
        """Return how much is kept for later, each stream's for itself, but for replays."""
        ...

    def empty(self) -> None:
        """Give back what is kept for later, but for replays."""
        ...

    def let_go(self) -> bool:
        """Give back that and what is kept for forwards that are replayed; return whether there was any of these."""
        ...


class Beside(Protocol):
    """What is held on a device beside forwards."""

    @property
    def reserved_bytes(self) -> int:
        """What has been given room and may not be there yet."""
        ...

    def release(self, nbytes: int | None = None) -> int:
        """Let go of what is idle, at least so many bytes of it, or of all, and return how many went."""
        ...


class CardMemory:
    """A card's, as torch's allocator in this process has it. replays: of its networks' forwards."""

    def __init__(self, device: torch.device, planned_bytes: int, replays: Replays) -> None:
        self._device = device
        self._planned_bytes = planned_bytes
        self._replays = replays
        self._watched = 0, 0

    @property
    def planned_bytes(self) -> int:
        return self._planned_bytes

    def held_bytes(self) -> int:
        return torch.cuda.memory_allocated(self._device) + self.replay_bytes()

    def watch(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)
        self._watched = self._replays.counters.replays, self.held_bytes()

    def peak_bytes(self) -> int:
        replays, held = self._watched
        if self._replays.counters.replays != replays:
            return held
        return torch.cuda.max_memory_allocated(self._device) + self.replay_bytes()

    def replay_bytes(self) -> int:
        return self._replays.idle_bytes()

    def cached_bytes(self) -> int:
        return torch.cuda.memory_reserved(self._device) - self.held_bytes()

    def empty(self) -> None:
        torch.cuda.empty_cache()

    def let_go(self) -> bool:
        dropped = self._replays.drop()
        self.empty()
        return dropped > 0


def room_bytes(memory: Memory, beside: Beside | None = None) -> int:
    """Return how much of a device's memory work may take now; below 0 where there is too little already."""
    return memory.planned_bytes - memory.held_bytes() - (0 if beside is None else beside.reserved_bytes)
