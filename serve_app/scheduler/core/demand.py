"""How many replicas a pool's tasks are worth: by how long they will take, not by how many they are. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple


class Demand(NamedTuple):
    """What a pool is asked for. waiting, running: how many tasks wait for a replica, and run.

    waiting_s: how long those that wait are expected to take a slot, by the model file that they need most.
    """

    waiting: int
    running: int
    waiting_s: Mapping[str, float] = {}


def replicas_by_count(demand: Demand, slots: int) -> int:
    """Return as many replicas as it takes to run every task at once. slots: tasks that one runs at once."""
    return math.ceil((demand.waiting + demand.running) / slots)


def replicas_by_seconds(demand: Demand, slots: int, drain_s: float) -> int:
    """Return as many replicas as it takes to do what waits within drain_s, beside those that run what runs.

    Never more than can have a task, and one at least where any task is.
    """
    seconds = sum(demand.waiting_s.values())
    wanted = math.ceil((demand.running + seconds / drain_s) / slots)
    return min(replicas_by_count(demand, slots), max(wanted, int(demand.waiting + demand.running > 0)))
