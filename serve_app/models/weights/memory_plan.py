"""The planning of memory: what weights and forwards may take of a card and its host, and which weights stream. Pure.

A process has a share of a card. A CUDA context takes a part of that which torch's allocator does not know of. The rest,
less a reserve, is what weights and forwards are planned within. The running server and `serve-app plan` decide by the
functions of this module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

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
"""A network that streams takes a multiple of 1 / SHARES of the weight budget, so that it has few variants."""
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


def largest_forward(nbytes: int, other_bytes: int, budget_bytes: int, forwards_bytes: int) -> int:
    """Return the bytes of the largest forward that has room, beside a network that streams as far as it can.

    nbytes, other_bytes, budget_bytes: as `stream_share`; forwards_bytes: as `weights_left`.
    """
    return budget_bytes + forwards_bytes - other_bytes - min(nbytes, budget_bytes // SHARES)


@dataclass(frozen=True, slots=True)
class Room:
    """What one process may take of a card and its host.

    planned_bytes: of the card, for weights and forwards; weights_bytes: of that, for weights beside usual forwards.
    host_bytes: pinned memory.
    """

    planned_bytes: int
    weights_bytes: int
    host_bytes: int

    @classmethod
    def of(cls, card_bytes: int, process_bytes: int, max_cells: int) -> Room:
        """Return the room of a process that has a whole card. process_bytes: of host memory that it may use.

        Errors: ConfigError for a card that is too small for any model.
        """
        share = card_share(card_bytes, card_bytes - CONTEXT_BYTES, 1)
        return cls(share.planned_bytes, share.weights_bytes(None, max_cells), offload_bytes(None, process_bytes))

    def weights_left(self, activation_bytes: int) -> int:
        """Return how many bytes weights may take beside a forward, as `weights_left`."""
        return weights_left(self.weights_bytes, self.planned_bytes - self.weights_bytes, activation_bytes)

    def largest_forward(self, nbytes: int, other_bytes: int) -> int:
        """Return the bytes of the largest forward that has room, as `largest_forward`."""
        return largest_forward(nbytes, other_bytes, self.weights_bytes, self.planned_bytes - self.weights_bytes)


@dataclass(frozen=True, slots=True)
class PartSize:
    """A part of a model. streamed: takes the bytes that it may take of a card, returns those copied in each forward."""

    nbytes: int
    streamed: Callable[[int], int]


@dataclass(frozen=True, slots=True)
class PartPlan:
    """Where the weights of a part are. card_bytes: on the card; streamed_bytes: copied in each forward.

    file_bytes: of those, the ones that are read from files, as pinned memory has no room for them.
    """

    nbytes: int
    card_bytes: int
    streamed_bytes: int = 0
    file_bytes: int = 0


Outcome: TypeAlias = Literal["whole", "evicting", "streaming", "too large"]
"""What becomes of a job: all its weights stay on the card; its parts take turns; some stream; a forward has no room."""


@dataclass(frozen=True, slots=True)
class JobPlan:
    """What a job takes of a card. activation_bytes: of a forward of one row. reread_bytes: of files, for each new text.

    The latter are of evicted parts that pinned memory has no room for. added_bytes: of LoRAs and ControlNets, which are
    beside the backbone in each forward. vae_bytes: of VAEs and upscalers, which come after.
    """

    outcome: Outcome
    backbone: PartPlan
    text: PartPlan
    vae_bytes: int
    activation_bytes: int
    reread_bytes: int = 0
    added_bytes: int = 0


def plan_job(
    room: Room, backbone: PartSize, text: PartSize, vae_bytes: int, activation_bytes: int, added_bytes: int = 0
) -> JobPlan:
    """Return what becomes of a job alone on a card. text: all its text encoders; the others: as of `JobPlan`."""
    left = room.weights_left(activation_bytes) - added_bytes
    denoises = _placed(room, backbone, left, room.host_bytes)
    pinned = denoises.streamed_bytes - denoises.file_bytes
    encodes = _placed(room, text, room.weights_bytes, room.host_bytes - pinned)
    together = denoises.card_bytes + encodes.card_bytes + vae_bytes
    outcome: Outcome = "whole" if together <= left else "evicting"
    if denoises.streamed_bytes or encodes.streamed_bytes:
        outcome = "streaming"
    if denoises.card_bytes > left:
        outcome = "too large"
    pinned += encodes.streamed_bytes - encodes.file_bytes
    evicted = 0 if together <= left or not text.nbytes else denoises.card_bytes + encodes.card_bytes
    reread = max(0, evicted - max(0, room.host_bytes - pinned))
    return JobPlan(outcome, denoises, encodes, vae_bytes, activation_bytes, reread, added_bytes)


def _placed(room: Room, part: PartSize, left_bytes: int, pinned_bytes: int) -> PartPlan:
    """Return where a part's weights are, of a card with room for left_bytes and a host for pinned_bytes of them."""
    share = stream_share(part.nbytes, 0, room.weights_bytes, left_bytes)
    if share is None:
        return PartPlan(part.nbytes, part.nbytes)
    card_bytes = int(share * room.weights_bytes)
    streamed = part.streamed(card_bytes)
    return PartPlan(part.nbytes, card_bytes, streamed, max(0, streamed - max(0, pinned_bytes)))
