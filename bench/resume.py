"""What it costs to keep the states of sampler runs: `python -m bench.resume`.

Each round samples the same request with a state and without one, in one process on the shipped network: a long run,
whose state is kept on a disk, and one shorter than `resume.after_s`. Which is first alternates. It prints the ratios of
the two, by the clock and by the process's own time, and `saving`: the part of the latter that threads spent in keeping
the state. Others that compute beside it make the first two noisy, not the last.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, thread_time
from typing import Any
from unittest import mock

import torch

from serve_app.config.resume import ResumeConfig
from serve_app.engine import runtime as runtime_module
from serve_app.engine.engine import Engine
from serve_app.engine.run_state import Answer, StateSaver
from serve_app.engine.runtime import EngineRuntime
from serve_app.engine.timeline import timeline_of
from serve_app.models.shipped import CHECKPOINT, SHIPPED
from serve_app.models.weights.weights import Weights
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.request import SamplingRequest, Steps
from serve_app.store.files.volume import Volume
from serve_app.store.models.catalog import Catalog
from serve_app.store.work.run_states import JobStates
from serve_app.values import Cfg, Guider, Noise, SamplerChoice

CELLS = 24
TARGETS = {"long": 0.01, "short": 0.0005}
"""The most of a run's time that its state may take."""


class TimedSaver(StateSaver):
    """A saver that counts the time which threads spend in it."""

    seconds = 0.0

    def _timed(self, began_s: float) -> None:
        TimedSaver.seconds += thread_time() - began_s

    def wants(self, answers: Sequence[Answer]) -> bool:
        began_s = thread_time()
        try:
            return super().wants(answers)
        finally:
            self._timed(began_s)

    def take(self, answers: Sequence[Answer], *, now: bool = False) -> Callable[[], Future[None]]:
        began_s = thread_time()
        try:
            return super().take(answers, now=now)
        finally:
            self._timed(began_s)

    def _keep(self, taken: int, saves: bool, took_s: float) -> None:
        began_s = thread_time()
        try:
            super()._keep(taken, saves, took_s)
        finally:
            self._timed(began_s)


def main() -> int:
    """Print a row for each kind of run; return 1 if a state costs more than it may."""
    parser = argparse.ArgumentParser(prog="python -m bench.resume", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=12.0, help="of a long run (default: %(default)s)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"load before: {os.getloadavg()[0]:.1f}")
    with mock.patch.object(runtime_module, "StateSaver", TimedSaver):
        costs = asyncio.run(_measured(asked.rounds, asked.seconds))
    print(f"load after: {os.getloadavg()[0]:.1f}")
    return 0 if all(median(found) <= TARGETS[kind] for kind, found in costs.items()) else 1


async def _measured(rounds: int, seconds: float) -> dict[str, list[float]]:
    engine = Engine(2 * CELLS**2, timeline_of(torch.device("cpu")))
    weights = Weights(Catalog(SHIPPED), torch.device("cpu"), dtype="auto", vae_dtype="auto", budget_bytes=10**9)
    costs: dict[str, list[float]] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            without, kept = EngineRuntime(engine, weights), EngineRuntime(engine, weights, resume=ResumeConfig())
            store = Volume({"work": Path(folder)})
            await _run(without, None, 10)
            step_s = (await _run(without, None, 100))[0] / 100
            for kind, steps in (("long", round(seconds / step_s)), ("short", round(0.8 / step_s))):
                shares = costs.setdefault(kind, [])
                clock: list[float] = []
                own: list[float] = []
                saves, began_bytes = kept.run_states.saves, kept.run_states.bytes
                for turn in range(rounds):
                    states = JobStates(store, f"{kind} {turn}")
                    TimedSaver.seconds = 0.0
                    plain_s = await _run(without, None, steps) if turn % 2 else None
                    with_s = await _run(kept, states, steps)
                    plain_s = plain_s or await _run(without, None, steps)
                    own.append(with_s[0] / plain_s[0])
                    clock.append(with_s[1] / plain_s[1])
                    shares.append(TimedSaver.seconds / with_s[0])
                print(
                    f"{kind}: {steps} steps, {with_s[1]:.1f} s; with a state over without: clock {_middle(clock)}, "
                    f"process {_middle(own)}; saving: median {median(shares):.3%}, most {max(shares):.3%}; "
                    f"{(kept.run_states.saves - saves) / rounds:.1f} saves of "
                    f"{(kept.run_states.bytes - began_bytes) / rounds / 1000:.0f} kB a run",
                    flush=True,
                )
    finally:
        engine.close()
    return costs


def _middle(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.3f} ({min(ratios):.3f} … {max(ratios):.3f})"


async def _run(runtime: EngineRuntime, states: JobStates | None, steps: int) -> tuple[float, float]:
    """Sample; return the process's seconds, and those of the clock."""
    clip, backbone = (Recipe(part, "checkpoints", CHECKPOINT) for part in ("clip", "backbone"))
    of_node: Any = None if states is None else lambda: states.of("3", 0, "recipe")
    node = runtime.bind(lambda done, of: None, states=of_node)
    texts = [await node.encode_text(clip, text) for text in ("a large red circle", "")]
    request = SamplingRequest(
        Guider(backbone, {"positive": texts[0], "negative": texts[1]}, Cfg(5.0)),
        latents=torch.zeros(1, 4, CELLS, CELLS),
        sampler=SamplerChoice("dpmpp_2m"),
        sigmas=Steps("normal", steps),
        noise=Noise(1),
    )
    began_s, own_s = perf_counter(), process_time()
    await node.sample(request)
    return process_time() - own_s, perf_counter() - began_s


if __name__ == "__main__":
    raise SystemExit(main())
