"""Which evaluations share the next forward. Pure: it sees keys, costs, the order of jobs and how long each has waited.

Older jobs go first, so that they end instead of all slowing each other down. With aging: an evaluation is due once it
has waited for `PATIENCE` forwards per older job, and the one that has been due for longest always runs. So no key and
no job starves: with n waiting, the one of rank r (0 is the oldest) is answered within PATIENCE·r + n turns. A turn is
one forward, or a few for areas of several shapes. Others of its key join while they fit and throughput grows.
Calls between forwards are batched by the same rule (`side_work`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol, TypeVar

PATIENCE = 4
"""How many forwards a job waits per older job before it is due."""


class Waiting(Protocol):
    """An evaluation that waits; it is never split.

    key: only equal keys share a forward. cost: how much work it is. since: the number of forwards that had run when it
    began to wait.
    """

    @property
    def key(self) -> Hashable: ...

    @property
    def cost(self) -> int: ...

    @property
    def since(self) -> int: ...


W = TypeVar("W", bound=Waiting)


def in_turn(waiting: Sequence[W]) -> list[W]:
    """Return evaluations in the order in which they are due. waiting: those of the oldest job first."""
    due = sorted(enumerate(waiting), key=lambda ranked: ranked[1].since + PATIENCE * ranked[0])
    return [evaluation for _, evaluation in due]


def share(waiting: Sequence[W], most: int, enough: Callable[[Sequence[int]], int] = len) -> list[W]:
    """Return the evaluations that share the next forward, ordered as by `in_turn`; [] only if nothing waits.

    Their costs add up to at most `most`, except that a single evaluation that costs more runs alone. enough: takes the
    rising costs of the batches of 1, 2, … evaluations, and returns the size of the batch that runs.
    """
    due = in_turn(waiting)
    chosen = due[:1]
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
