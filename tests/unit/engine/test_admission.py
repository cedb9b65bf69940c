"""Jobs that come over time, on a device in virtual time: what they wait when forwards are only as large as need be.

The engine's own rule, with curves learned on the way, beside what it was before: as many as fit, longest waiting first.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean

import pytest

from serve_app.engine.batcher import PATIENCE, in_turn, share
from serve_app.engine.curve import Curves

ROWS, STEPS, MOST, JOBS = 2, 20, 32, 400

CURVES: dict[str, Callable[[int], float]] = {
    "SD 1.5, a graph on an H100": lambda rows: 0.0004 + 0.0023 * rows,
    "SDXL, a card that four rows fill": lambda rows: max(0.05, 0.0156 * rows),
    "a CPU": lambda rows: 0.1 + 0.05 * rows,
}
"""Seconds a forward: those of cards are estimates, by rooflines."""


@dataclass(eq=False)
class Job:
    came_s: float
    left: int = STEPS
    since: int = 0
    key: str = "a"
    cost: int = ROWS


@dataclass
class Waits:
    """mean_s, p95_s: from a job's coming to its end. busy_s: what all forwards took. bound: the worst wait, of it."""

    mean_s: float
    p95_s: float
    busy_s: float
    bound: float


def simulated(takes_s: Callable[[int], float], load: float, rule: Callable[..., Sequence[Job]], seed: int) -> Waits:
    """Run jobs that come at random, at a share of what the device can do at best."""
    drawn = random.Random(seed)
    best = max(rows / takes_s(rows) for rows in range(ROWS, MOST + 1, ROWS))
    coming, at_s = [], 0.0
    for _ in range(JOBS):
        at_s += drawn.expovariate(load * best / (ROWS * STEPS))
        coming.append(Job(at_s))
    now_s = busy_s = bound = 0.0
    waiting: list[Job] = []
    took: list[float] = []
    forward = 0
    while coming or waiting:
        now_s = now_s if waiting else max(now_s, coming[0].came_s)
        while coming and coming[0].came_s <= now_s:
            waiting.append(coming.pop(0))
            waiting[-1].since = forward
        chosen = rule(waiting)
        seconds = takes_s(ROWS * len(chosen))
        forward, now_s, busy_s = forward + ROWS, now_s + seconds, busy_s + seconds
        learn(rule, ROWS * len(chosen), seconds)
        for rank, job in enumerate(waiting):
            bound = max(bound, (forward - job.since) / (ROWS * (PATIENCE * rank + len(waiting))))
        for job in chosen:
            job.left, job.since = job.left - 1, forward
            if not job.left:
                took.append(now_s - job.came_s)
        waiting = [job for job in waiting if job.left]
    took.sort()
    return Waits(mean(took), took[int(0.95 * len(took))], busy_s, bound)


def learn(rule: Callable[..., Sequence[Job]], size: int, seconds: float) -> None:
    if isinstance(rule, Rule):
        rule.curves.took("a", size, seconds)


class Rule:
    """The engine's."""

    def __init__(self) -> None:
        self.curves = Curves()

    def __call__(self, waiting: Sequence[Job]) -> Sequence[Job]:
        return share(in_turn(waiting), MOST, partial(self.curves.enough, "a"))


def all_that_fit(waiting: Sequence[Job]) -> Sequence[Job]:
    return sorted(waiting, key=lambda job: job.since)[: MOST // ROWS]


SHORTER = {
    ("SD 1.5, a graph on an H100", 0.8): (0.81, 0.755),
    ("SD 1.5, a graph on an H100", 0.95): (0.83, 0.8),
    ("SDXL, a card that four rows fill", 0.8): (0.75, 0.69),
    ("SDXL, a card that four rows fill", 0.95): (0.69, 0.7),
    ("a CPU", 0.8): (0.98, 0.92),
    ("a CPU", 0.95): (0.98, 0.89),
}
"""By device and load: what jobs take over what they took before, in the mean and at the 95th percentile."""


@pytest.mark.parametrize(("device", "load"), SHORTER)
def test_jobs_take_less_time_the_device_as_much_and_none_waits_beyond_its_bound(device: str, load: float) -> None:
    seeds = range(6)
    ours = [simulated(CURVES[device], load, Rule(), seed) for seed in seeds]
    before = [simulated(CURVES[device], load, all_that_fit, seed) for seed in seeds]
    most_mean, most_p95 = SHORTER[device, load]
    assert mean(run.mean_s for run in ours) / mean(run.mean_s for run in before) == pytest.approx(most_mean, abs=0.01)
    assert mean(run.p95_s for run in ours) / mean(run.p95_s for run in before) == pytest.approx(most_p95, abs=0.01)
    assert mean(run.busy_s for run in ours) / mean(run.busy_s for run in before) <= 1.02
    assert max(run.bound for run in ours) <= 1
