"""Plans how many devices shall compute a model's forwards together, and how: from the shape and the devices' link.

The family's own forward runs on the meta device as one rank of several, with collectives that only count, so bytes and
operations are those of the code. Times are a roofline's: of each rank's kernels, and then of what it sends. Never
measured on GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

from torch import Tensor

from serve_app.models.forward_cost import ForwardCost
from serve_app.models.ranks.division import Parallel, divide
from serve_app.models.ranks.sharding import sharded_over
from serve_app.models.weights.memory_plan import PartPlan
from serve_app.models.weights.roofline import Card, forward_s
from serve_app.models.weights.sharded_blocks import ShardSizes

LINKS: Mapping[str, float] = {"nvlink": 450e9, "pcie5": 64e9, "pcie4": 32e9, "100g": 12.5e9}
"""Bytes a second that a card sends to others, by data sheet: NVLink of an H100, PCIe of 16 lanes, a network."""
REACHED = 0.8
"""The part of a link's data sheet that collectives of some megabytes reach."""
COUNTS: Sequence[int] = (1, 2, 3, 4, 6, 8)
"""Numbers of devices that are looked at."""
WORTH = 0.6
"""The least part of a device's time that is gained by adding it, for it to be recommended."""


class Counted:
    """One of a number of ranks, whose collectives count what it sends; implements `sharding.SequenceRanks`."""

    def __init__(self, size: int, rank: int = 0) -> None:
        self.rank, self.size = rank, size
        self.exchanged = self.gathered = 0

    @property
    def sent(self) -> int:
        """Bytes, in all-to-alls and all-gathers."""
        return self.exchanged + self.gathered

    def all_to_all(self, sent: Sequence[Tensor], received: Sequence[Sequence[int]]) -> list[Tensor]:
        others = (one for rank, one in enumerate(sent) if rank != self.rank)
        self.exchanged += sum(prod(one.shape) * one.dtype.itemsize for one in others)
        return [sent[0].new_empty(tuple(shape)) for shape in received]

    def all_gather(self, own: Tensor, sizes: Sequence[int], dim: int) -> Tensor:
        self.gathered += prod(own.shape) * own.dtype.itemsize * (self.size - 1)
        shape = list(own.shape)
        shape[dim] = sum(sizes)
        return own.new_empty(shape)


@dataclass(frozen=True, slots=True)
class DevicesPlan:
    """A step on a number of devices. by: how the slowest one's part is divided. sent_bytes: by that one, of its rows.

    speed_up: over one device. shards_weights: whether each has a part of the weights.
    """

    devices: int
    parallel: Parallel
    by: str
    sent_bytes: int
    step_s: float
    speed_up: float
    shards_weights: bool = False


def plan_devices(
    cost: Callable[[], ForwardCost],
    heads: int | None,
    rows: int,
    card: Card,
    link: str,
    placed: PartPlan,
    counts: Sequence[int] = COUNTS,
    sharded: Callable[[int], ShardSizes] | None = None,
) -> list[DevicesPlan]:
    """Return the fastest way for each number of devices. cost: of a forward of one row, run as the code has it.

    heads: as `BackboneFamily.sharded_heads`. rows: of a step. link: one of LINKS. placed: the backbone's weights.
    sharded: the bytes of weights that are sharded over a number of devices, which those are that would stream and whose
    parts fit; None: none are. They are gathered while blocks compute, with each row, as streamed ones are copied.
    """
    bytes_s = REACHED * LINKS[link]

    @cache
    def of_row(degree: int) -> tuple[ForwardCost, int]:
        ranks = Counted(degree)
        with sharded_over(ranks if degree > 1 else None):
            return cost(), ranks.sent

    @cache
    def gathered(devices: int) -> int | None:
        """Return the bytes of weights that each device sends in a forward; None where they are not sharded."""
        if sharded is None or devices == 1 or not placed.streamed_bytes:
            return None
        sizes = sharded(devices)
        return sizes.sent_bytes if sizes.device_bytes <= placed.card_bytes else None

    def way(devices: int, parallel: Parallel) -> DevicesPlan:
        parts = divide(rows, devices, heads, parallel)
        most, degree = max((len(part.rows), part.degree) for part in parts)
        counted, sent = of_row(degree)
        weights = gathered(devices)
        if weights is None:
            row_s = forward_s(counted, placed, card)
        else:
            row_s = max(forward_s(counted, PartPlan(placed.nbytes, placed.nbytes), card), weights / bytes_s)
        step_s, sent_bytes = most * (row_s + sent / bytes_s), most * (sent + (weights or 0))
        by = _by(len(parts), degree, heads)
        return DevicesPlan(devices, parallel, by, sent_bytes, step_s, alone_s / step_s, weights is not None)

    alone_s = rows * forward_s(of_row(1)[0], placed, card)
    ways: Sequence[Parallel] = ("auto", "ulysses", "rows")
    return [min((way(devices, parallel) for parallel in ways), key=lambda plan: plan.step_s) for devices in counts]


def recommended(plans: Sequence[DevicesPlan]) -> DevicesPlan:
    """Return the most devices each of which is worth it, beside the last number that was."""
    best = plans[0]
    for plan in plans[1:]:
        if plan.speed_up - best.speed_up >= WORTH * (plan.devices - best.devices):
            best = plan
    return best


def _by(parts: int, degree: int, heads: int | None) -> str:
    """Return the name of how a forward is divided."""
    ways = ["rows"] if parts > 1 else []
    if degree > 1:
        ways.append("gathered keys" if heads is None or heads % degree else "Ulysses")
    return " and ".join(ways) or "not divided"
