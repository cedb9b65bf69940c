"""The planning of memory: what weights and forwards may take of a card and its host, and which weights stream. Pure.

A process has a share of a card. A CUDA context takes a part of that which torch's allocator does not know of. The rest,
less a reserve, is what weights and forwards are planned within. The running server and `serve-app plan` decide by the
functions of this module.
"""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.errors import ConfigError

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


SHARES = 8
"""A network that streams takes so many eighths of the weight budget, so that it has few variants."""
LARGEST_SHARE = 6
"""Of the eighths, the most that it takes: the others are left for LoRAs, ControlNets and a VAE."""
ACTIVATIONS_MARGIN = 1.1
"""What forwards are taken to need, over what their tensors are counted to take: an allocator rounds sizes up."""


def weights_left(budget_bytes: int, forwards_bytes: int, activation_bytes: int) -> int:
    """Return how many bytes weights may take beside a forward, below 0 where it has no room at all.

    budget_bytes: what weights may take beside usual forwards, for which forwards_bytes are left. activation_bytes: of
    the forward.
    """
    return budget_bytes - max(0, activation_bytes - forwards_bytes)


def stream_share(nbytes: int, other_bytes: int, budget_bytes: int, left_bytes: int | None = None) -> float | None:
    """Return the share of the weight budget for a network that has to stream; None for one that fits.

    nbytes: of the network; other_bytes: of other weights needed at once. left_bytes: of the budget, as `weights_left`;
    None: all of it. At least one eighth, even if less is left.
    """
    left = (budget_bytes if left_bytes is None else left_bytes) - other_bytes
    if nbytes <= left:
        return None
    share = min(max(SHARES * left // max(budget_bytes, 1), 1), LARGEST_SHARE) / SHARES
    return share if nbytes > share * budget_bytes else None
