"""Who shares the next forward. Pure: it sees keys, costs, in which order jobs came and how long each has waited.

Older jobs go first, so that they end and do not all wait for one another; but each job's evaluation is due once it has
waited for `PATIENCE` forwards a job that is older, and what has been due for longest always runs. So no key and no job
starves: with n waiting, the one of rank r (0 is the oldest) is answered within PATIENCE·r + n turns. A turn is one
forward, or a few for areas of several shapes. Others of its key that fit run with it, as many as bring something.
Work between forwards that can be done together is chosen by the same rule (`side_work`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol, TypeVar

PATIENCE = 4
"""How many forwards a job waits at most for each older one, beside its turn among those that are due."""


class Waiting(Protocol):
    """An evaluation that waits. It is not split here.

    key: only equal keys share a forward. cost: how much work it is. since: the number of the forward after which it
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
    """Return those of `waiting` that share the next forward, as `in_turn` has them; [] only if nothing waits.

    Their costs add up to at most `most`, except that a single evaluation that costs more goes alone. enough: which of
    the costs that the forward may have, growing, is taken, from 1.
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
