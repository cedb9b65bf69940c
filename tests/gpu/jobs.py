"""What jobs take in the engine: steps, images a second, and how long a job waits that joins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from time import perf_counter, sleep

from serve_app.engine.engine import Engine
from serve_app.engine.timeline import timeline_of
from serve_app.engine.trajectory import Trajectory
from serve_app.models.backbone import RecipeBackbone
from serve_app.sampling.request import Sampled
from tests.gpu.bench import Bench
from tests.gpu.models import Model
from tests.gpu.results import Figure

JOBS = (1, 4, 8, 16)
JOINS_S = 300.0
"""How long a job may take to its first step; it ends the measure."""


def of_jobs(bench: Bench) -> Iterator[Figure]:
    """Measure jobs in the engine: steps, images a second, how busy the device is, how long a joining job waits."""
    for model in bench.models:
        backbone = model.backbone(bench.device, bench.dtype)
        engine = Engine(2**20, timeline_of(bench.device))
        try:
            _run(engine, model, backbone, 2)
            for jobs in JOBS:
                before = engine.counters.seconds
                took_s = _run(engine, model, backbone, jobs)
                forwards_s = engine.counters.seconds - before
                if jobs == 1:
                    yield Figure(f"{model.name}, step of 1 job", 1000 * took_s / model.steps, "ms")
                yield Figure(f"{model.name}, images a second of {jobs} jobs, not decoded", jobs / took_s, "")
                yield Figure(f"{model.name}, device busy with {jobs} jobs", forwards_s / took_s, "")
            yield _joining(engine, model, backbone)
        finally:
            engine.close()
        del backbone


def _run(engine: Engine, model: Model, backbone: RecipeBackbone, jobs: int) -> float:
    began = perf_counter()
    running = [engine.submit(Trajectory(backbone, model.request(seed))) for seed in range(jobs)]
    wait(running)
    for future in running:
        future.result()
    return perf_counter() - began


def _joining(engine: Engine, model: Model, backbone: RecipeBackbone) -> Figure:
    """Measure the time to a job's first step that joins eight, over one of their forwards."""
    first: Future[float] = Future()
    before, forwards = engine.counters.seconds, engine.counters.forwards
    running: list[Future[Sampled]] = [
        engine.submit(Trajectory(backbone, model.request(seed, steps=4 * model.steps))) for seed in range(8)
    ]
    while engine.counters.forwards < forwards + 4 and not running[0].done():
        # A host that only asks would keep the engine's thread from running.
        sleep(0.0002)
    began = perf_counter()

    def on_step(done: int, steps: int) -> Callable[[], object] | None:
        return (lambda: first.set_result(perf_counter() - began)) if done == 1 else None

    running.append(engine.submit(Trajectory(backbone, model.request(9), on_step)))
    joined_s = first.result(JOINS_S)
    forward_s = (engine.counters.seconds - before) / max(1, engine.counters.forwards - forwards)
    for future in running:
        future.cancel()
    return Figure(f"{model.name}, a joining job's first step over a forward", joined_s / forward_s, "")
