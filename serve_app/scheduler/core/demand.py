"""How many replicas a pool needs for its tasks, by their number or by their expected duration. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple


class Demand(NamedTuple):
    """A pool's load. waiting, running: the numbers of tasks.

    waiting_s: the slot seconds that the waiting tasks are expected to take, by model file. next_s: where there is no
    task, in how many seconds a job in progress is expected to have one; None if no job is. reserved: the free slots
    that no other task may take, since a suspect has, or waits for, a replica alone.
    """

    waiting: int
    running: int
    waiting_s: Mapping[str, float] = {}
    next_s: float | None = None
    reserved: int = 0


def replicas_by_count(demand: Demand, slots: int) -> int:
    """Return the replicas needed to run every task at once. slots: of one replica."""
    return math.ceil((demand.waiting + demand.running + demand.reserved) / slots)


def replicas_by_seconds(demand: Demand, slots: int, drain_s: float) -> int:
    """Return the replicas needed for the running tasks and to drain the waiting ones within drain_s.

    At most one slot for each task, and at least one if there is any task, or one is expected within drain_s.
    """
    if demand.waiting + demand.running == 0:
        return int(demand.next_s is not None and demand.next_s <= drain_s)
    seconds = sum(demand.waiting_s.values())
    wanted = math.ceil((demand.running + demand.reserved + seconds / drain_s) / slots)
    return min(replicas_by_count(demand, slots), max(wanted, 1))
