"""Who shares the next forward. Pure: it sees keys, costs and how long each has waited, and nothing else.

The evaluation that has waited longest always runs, and others of its key that fit run with it, longest waiting first.
So no key and no evaluation starves: with n waiting, each is answered within n turns. A turn is one forward, or a few
for areas of several shapes. Work between forwards that can be done together is chosen by the same rule (`side_work`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol, TypeVar


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


def share(waiting: Sequence[W], most: int) -> list[W]:
    """Return those of `waiting` that share the next forward; [] only if nothing waits.

    Their costs add up to at most `most`, except that a single evaluation that costs more goes alone. Of equally long
    waiting evaluations the first in `waiting` comes first.
    """
    by_age = sorted(waiting, key=lambda w: w.since)
    chosen = by_age[:1]
    if not chosen:
        return chosen
    key, cost = chosen[0].key, chosen[0].cost
    for candidate in by_age[1:]:
        if candidate.key == key and cost + candidate.cost <= most:
            chosen.append(candidate)
            cost += candidate.cost
    return chosen
