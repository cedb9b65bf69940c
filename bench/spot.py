"""How much of the time of GPUs that may be taken away is useful: `python -m bench.spot`, a simulation, no GPU.

Jobs of twenty minutes run one after another on one card, which is lost every ten minutes on average (exponential),
half the time with a notice. The server's own `StateSaver` decides when to save; steps, saves and losses take time on
the simulation's clock. The same seeds of losses meet runs with a state and runs that start again.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from math import inf
from typing import Any
from unittest import mock

import torch

from serve_app.engine import run_state
from serve_app.engine.run_state import Answer, RunStateCounters, StateSaver

TARGET = 0.95


@dataclass(frozen=True)
class Card:
    """A card and its jobs, in seconds. steps of step_s: one job; save_s: of a save; loading_s: after a loss."""

    steps: int = 120
    step_s: float = 10.0
    save_s: float = 0.2
    loading_s: float = 30.0
    lost_s: float = 600.0
    notice_s: float = 30.0
    noticed: float = 0.5


@dataclass
class Spent:
    """Seconds of the card in steps, in saves and in loading, and how often it was lost."""

    steps_s: float = 0.0
    saves_s: float = 0.0
    loading_s: float = 0.0
    losses: int = 0


class Now(Executor):
    """Runs what is submitted at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class Simulation:
    """One card, its losses and its jobs. resumes: whether runs have a state."""

    def __init__(self, card: Card, seed: int, *, resumes: bool) -> None:
        self.card, self.resumes = card, resumes
        self.spent = Spent()
        self.now_s = 0.0
        self._losses = random.Random(seed)
        self._parts: dict[int, bytes] = {}
        self._lost_at_s, self._noticed_at_s = self._next_loss()

    def read(self, max_bytes: int) -> list[bytes]:
        return [self._parts[first] for first in sorted(self._parts)]

    def write(self, first: int, part: bytes) -> None:
        self._pass(self.card.save_s)
        self.spent.saves_s += self.card.save_s
        self._parts[first] = part

    def delete(self) -> None:
        self._parts.clear()

    def run(self, jobs: int) -> float:
        """Return the share of the card's time, without loading, that jobs needed."""
        with mock.patch.object(run_state, "perf_counter", side_effect=lambda: self.now_s):
            for _ in range(jobs):
                while not self._attempt():
                    self.spent.losses += 1
                    self.spent.loading_s += self.card.loading_s
                    self.now_s = self._lost_at_s + self.card.loading_s
                    self._lost_at_s, self._noticed_at_s = self._next_loss()
                self.delete()
        needed_s = jobs * self.card.steps * self.card.step_s
        return needed_s / (self.spent.steps_s + self.spent.saves_s)

    def _attempt(self) -> bool:
        """Go on with a job to its end, or until the card is lost; return whether it has ended."""
        saver = StateSaver(self, Now(), RunStateCounters(), after_s=5.0, max_bytes=10**9)
        answers: list[Answer] = []
        for step in range(len(saver.read()) if self.resumes else 0, self.card.steps):
            left_s = self._lost_at_s - self.now_s
            self._pass(min(left_s, self.card.step_s))
            self.spent.steps_s += min(left_s, self.card.step_s)
            if left_s < self.card.step_s:
                return False
            answers.append((torch.tensor([float(step)]),))
            leaves = self.resumes and self.now_s >= self._noticed_at_s
            if self.resumes and (leaves or saver.wants(answers)):
                if self.now_s + self.card.save_s > self._lost_at_s:
                    return False
                saver.take(answers, now=leaves)()
                answers = []
            if leaves:
                return False
        return True

    def _pass(self, seconds: float) -> None:
        self.now_s += seconds

    def _next_loss(self) -> tuple[float, float]:
        lost_at_s = self.now_s + self._losses.expovariate(1 / self.card.lost_s)
        noticed = self._losses.random() < self.card.noticed
        return lost_at_s, max(self.now_s, lost_at_s - self.card.notice_s) if noticed else inf


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.spot", description=__doc__)
    parser.add_argument("--jobs", type=int, default=100, help="a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="each with losses of its own (default: %(default)s)")
    parser.add_argument("--save", type=float, default=Card.save_s, help="seconds of a save (default: %(default)s)")
    parser.add_argument("--step", type=float, default=Card.step_s, help="seconds of a step (default: %(default)s)")
    arguments = parser.parse_args()
    card = Card(round(1200 / arguments.step), arguments.step, arguments.save)
    worst = 1.0
    for seed in range(arguments.rounds):
        for resumes in (False, True):
            simulation = Simulation(card, seed, resumes=resumes)
            share, spent = simulation.run(arguments.jobs), simulation.spent
            worst = min(worst, share) if resumes else worst
            what = "goes on" if resumes else "starts again"
            print(
                f"seed {seed}, {what:<12} useful {share:.3f}; steps {spent.steps_s / 3600:.1f} h, "
                f"saves {spent.saves_s / 3600:.2f} h, loading {spent.loading_s / 3600:.2f} h, {spent.losses} losses",
                flush=True,
            )
    return 0 if worst >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
