"""Which evaluations share the next forward. Pure: it sees keys, costs, the order of jobs and how long each has waited.

Older jobs go first, so that they end instead of all slowing each other down. With aging: an evaluation of cost c and
rank r (0 is the oldest) is due once the device has done c·(1 + PATIENCE·r) of work since it began to wait, and the one
that has been due for longest always runs. Work is the cost of the largest evaluation of each forward: that others share
it does not let time pass faster. Evaluations of equal cost so wait for `PATIENCE` forwards per older job; one that is
small beside the others goes on, forward by forward, until it has had as much of the device as one of theirs takes. So
a short image beside a long video waits for the forwards in flight, and not for the video.

No key and no job starves: once an evaluation is due, each other that waits is answered once more at most before it.
Others of its key join while they fit and throughput grows. Calls between forwards are batched likewise (`side_work`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol, TypeVar

PATIENCE = 4
"""How many times its own cost an evaluation waits per older job before it is due."""


class Waiting(Protocol):
    """An evaluation that waits; it is never split.

    key: only equal keys share a forward. cost: how much work it is.
    """

    @property
    def key(self) -> Hashable: ...

    @property
    def cost(self) -> int: ...


class Aging(Waiting, Protocol):
    """An evaluation that becomes due. since: the work that the device had done when it began to wait."""

    @property
    def since(self) -> int: ...


W = TypeVar("W", bound=Waiting)
A = TypeVar("A", bound=Aging)


def in_turn(waiting: Sequence[A]) -> list[A]:
    """Return evaluations in the order in which they are due. waiting: those of the oldest job first."""
    due = sorted(enumerate(waiting), key=lambda ranked: ranked[1].since + ranked[1].cost * (1 + PATIENCE * ranked[0]))
    return [evaluation for _, evaluation in due]


def share(due: Sequence[W], most: int, enough: Callable[[Sequence[int]], int] = len) -> list[W]:
    """Return the evaluations that share the next forward, in the order given; [] only if nothing waits.

    due: what waits, in the order in which it is due. Their costs add up to at most `most`, except that a single
    evaluation that costs more runs alone. enough: takes the rising costs of the batches of 1, 2, … evaluations, and
    returns the size of the batch that runs.
    """
    chosen = [*due[:1]]
    if not chosen:
        return chosen
    key, cost = chosen[0].key, chosen[0].cost
    costs = [cost]
    for candidate in due[1:]:
        if candidate.key == key and cost + candidate.cost <= most:
            chosen.append(candidate)
            cost += candidate.cost
            costs.append(cost)
    return chosen[: enough(costs)]
