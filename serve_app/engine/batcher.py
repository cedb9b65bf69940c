"""Who shares the next forward. Pure: it sees keys, row counts and how long each has waited, and nothing else.

The evaluation that has waited longest always runs, and others of its key that fit run with it, longest waiting first.
So no key and no evaluation starves: with n waiting, each is answered within n turns. A turn is one forward, or a few
for areas of several shapes. Work between forwards that can be done together is chosen by the same rule (`calls.py`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol, TypeVar


class Waiting(Protocol):
    """An evaluation that waits. Its rows are not split: cond and uncond of one evaluation run together.

    key: only equal keys share a forward. since: the number of the forward after which it began to wait.
    """

    @property
    def key(self) -> Hashable: ...

    @property
    def rows(self) -> int: ...

    @property
    def since(self) -> int: ...


W = TypeVar("W", bound=Waiting)


def share(waiting: Sequence[W], max_rows: int, *, batching: bool = True) -> list[W]:
    """Return those of `waiting` that share the next forward; [] only if nothing waits.

    Their rows add up to at most max_rows, except that a single evaluation larger than that goes alone. Of equally long
    waiting evaluations the first in `waiting` comes first. batching False: one evaluation a forward.
    """
    by_age = sorted(waiting, key=lambda w: w.since)
    chosen = by_age[:1]
    if not chosen or not batching:
        return chosen
    key, rows = chosen[0].key, chosen[0].rows
    for candidate in by_age[1:]:
        if candidate.key == key and rows + candidate.rows <= max_rows:
            chosen.append(candidate)
            rows += candidate.rows
    return chosen
