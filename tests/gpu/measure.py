"""Measure one GPU: what forwards, decodes and jobs take there, beside what was predicted without one.

    python -m tests.gpu.measure                      # all stages, a few minutes on one card; a table and measured.json
    python -m tests.gpu.measure forwards --out F     # one stage: card, forwards, jobs
    python -m tests.gpu.measure --check              # every stage on this CPU with small networks: that it works

Weights are random and full size: speed does not depend on them, so no file is needed. Predictions are for one H100, by
counts of kernels and a roofline, for eager forwards; goals are those of the graphs to come. Beside ComfyUI on the same
card: `python -m bench images --comfyui DIR`.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from time import perf_counter

import torch

from serve_app.engine.engine import Engine
from serve_app.engine.timeline import timeline_of
from serve_app.engine.trajectory import Trajectory
from serve_app.models.backbone import Backbone
from serve_app.sampling.forward import Piece, denoise
from serve_app.sampling.request import Sampled
from tests.gpu.models import FULL, FULL_VAE, SMALL, SMALL_VAE, Model, vae

ROWS = (1, 2, 4, 8, 16, 32)
JOBS = (1, 4, 8, 16)
SIDES = (512, 1024, 2048)
REPEATS = 10

PREDICTED: dict[str, tuple[str, str]] = {
    "matmul 8192³, bf16": ("798 TFLOP/s", ""),
    "copy on the card": ("3.0 TB/s", ""),
    "SD 1.5, forward of 2 rows": ("8.2 ms", "4.7 ms"),
    "SD 1.5, forward of 4 rows": ("14.8 ms", "9.2 ms"),
    "SD 1.5, forward of 8 rows": ("28 ms", "18.4 ms"),
    "SD 1.5, forward of 16 rows": ("55 ms", "37 ms"),
    "SD 1.5, forward of 32 rows": ("108 ms", "73 ms"),
    "SDXL, forward of 2 rows": ("42 ms", "31 ms"),
    "SDXL, forward of 4 rows": ("84 ms", "62 ms"),
    "SDXL, forward of 8 rows": ("167 ms", "124 ms"),
    "SDXL, forward of 16 rows": ("332 ms", "249 ms"),
    "SDXL, forward of 32 rows": ("664 ms", "498 ms"),
    "SD 1.5, host asks for a forward": ("24.7 ms on a slow CPU", ""),
    "SDXL, host asks for a forward": ("48.9 ms on a slow CPU", ""),
    "SD 1.5, kernels of a forward": ("728, and those of biases and layouts", ""),
    "SDXL, kernels of a forward": ("1842, and those of biases and layouts", ""),
    "SD 1.5, memory of a row": ("65 MiB", ""),
    "SDXL, memory of a row": ("158 MiB", ""),
    "SD 1.5, unequal texts over equal ones": ("1.1 or more", "1.0"),
    "VAE, decode of 512×512": ("8 to 13 ms", ""),
    "VAE, decode of 1024×1024": ("32 to 52 ms", ""),
    "VAE, memory of a megapixel": ("1536 MiB", ""),
    "SD 1.5, step of 1 job": ("18 to 26 ms, by the host", "6.5 ms"),
    "SD 1.5, images a second of 8 jobs, not decoded": ("6 to 7", "9"),
    "SDXL, step of 1 job": ("48 to 60 ms", "36 ms"),
    "SDXL, images a second of 8 jobs, not decoded": ("0.70 to 0.80 at 30 steps", "0.95"),
    "SD 1.5, device busy with 8 jobs": ("0.95 or more", "0.95"),
    "SDXL, device busy with 8 jobs": ("0.95 or more", "0.95"),
    "SD 1.5, a joining job's first step over a forward": ("3 at most: two in flight and its own", "3"),
    "SDXL, a joining job's first step over a forward": ("3 at most: two in flight and its own", "3"),
}
"""By what is measured: what was predicted, and the goal, for one H100."""


@dataclass(frozen=True)
class Figure:
    """What was measured, and what was predicted and aimed at."""

    name: str
    value: float
    unit: str
    predicted: str = ""
    goal: str = ""


@dataclass(frozen=True)
class Bench:
    """What is measured, and where. small: on any machine, to show that measuring works."""

    device: torch.device
    small: bool

    @property
    def models(self) -> Sequence[Model]:
        return SMALL if self.small else FULL

    @property
    def dtype(self) -> torch.dtype:
        return torch.float16 if self.device.type == "cuda" else torch.float32

    @property
    def repeats(self) -> int:
        return 1 if self.small else REPEATS

    def seconds(self, work: Callable[[], object]) -> tuple[float, float]:
        """Return what work takes the device, and the host to ask for it, in seconds; after a first time."""
        work()
        timeline = timeline_of(self.device)
        began = timeline.mark()
        for _ in range(self.repeats):
            work()
        asked = perf_counter()
        ended = timeline.mark()
        ended.wait()
        return ended.since(began) / self.repeats, (asked - began.asked_s) / self.repeats

    def peak_bytes(self, work: Callable[[], object]) -> float:
        """Return how much more memory work needs than is held, 0 on a CPU."""
        if self.device.type != "cuda":
            work()
            return 0.0
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return float(torch.cuda.max_memory_allocated() - held)

    def kernels(self, work: Callable[[], object]) -> float:
        """Return how many kernels work launches; on a CPU, operations."""
        cuda = self.device.type == "cuda"
        activity = torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU
        with torch.profiler.profile(activities=[activity]) as profiled:
            work()
            timeline_of(self.device).mark().wait()
        kind = "CUDA" if cuda else "CPU"
        return float(sum(event.device_type.name == kind for event in profiled.events()))


def of_card(bench: Bench) -> Iterator[Figure]:
    """Measure what the card can do at most."""
    side = 256 if bench.small else 8192
    a = torch.randn(side, side, device=bench.device, dtype=torch.bfloat16)
    took_s, _ = bench.seconds(lambda: a @ a)
    yield Figure("matmul 8192³, bf16", 2 * side**3 / took_s / 1e12, "TFLOP/s")
    took_s, _ = bench.seconds(a.clone)
    yield Figure("copy on the card", 2 * a.nbytes / took_s / 1e12, "TB/s")


def of_forwards(bench: Bench) -> Iterator[Figure]:
    """Measure forwards by rows, what the host has to do for one, and decodes."""
    for model in bench.models:
        backbone = model.backbone(bench.device, bench.dtype)
        for rows in ROWS:
            pieces = model.pieces(backbone, rows)
            took_s, asked_s = bench.seconds(lambda pieces=pieces: denoise(pieces))  # type: ignore[misc]
            yield Figure(f"{model.name}, forward of {rows} rows", 1000 * took_s, "ms")
            if rows == 2:
                yield Figure(f"{model.name}, host asks for a forward", 1000 * asked_s, "ms")
                yield Figure(f"{model.name}, kernels of a forward", bench.kernels(lambda p=pieces: denoise(p)), "")  # type: ignore[misc]
            if rows == 8:
                peak = bench.peak_bytes(lambda p=pieces: denoise(p))  # type: ignore[misc]
                yield Figure(f"{model.name}, memory of a row", peak / rows / 2**20, "MiB")
        if model.name == "SD 1.5":
            yield _unequal(bench, model, backbone)
        del backbone
    family, factor = (SMALL_VAE, 16) if bench.small else (FULL_VAE, 1)
    dtype = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
    decoder = vae(family, bench.device, dtype)
    for side in SIDES:
        latents = torch.randn(1, 4, side // 8 // factor, side // 8 // factor)
        took_s, _ = bench.seconds(lambda latents=latents: decoder.decode(latents))  # type: ignore[misc]
        yield Figure(f"VAE, decode of {side}×{side}", 1000 * took_s, "ms")
        if side == 1024:
            peak = bench.peak_bytes(lambda latents=latents: decoder.decode(latents))  # type: ignore[misc]
            yield Figure("VAE, memory of a megapixel", peak / 2**20 / 1.048576, "MiB")


def _unequal(bench: Bench, model: Model, backbone: Backbone) -> Figure:
    equal: list[Piece] = model.pieces(backbone, 8, (154,))
    unequal: list[Piece] = model.pieces(backbone, 8, (77, 154))
    alike_s, _ = bench.seconds(lambda: denoise(equal))
    unlike_s, _ = bench.seconds(lambda: denoise(unequal))
    return Figure("SD 1.5, unequal texts over equal ones", unlike_s / alike_s, "")


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


def _run(engine: Engine, model: Model, backbone: Backbone, jobs: int) -> float:
    began = perf_counter()
    running = [engine.submit(Trajectory(backbone, model.request(seed))) for seed in range(jobs)]
    wait(running)
    for future in running:
        future.result()
    return perf_counter() - began


def _joining(engine: Engine, model: Model, backbone: Backbone) -> Figure:
    """Measure the time to a job's first step that joins eight, over one of their forwards."""
    first: Future[float] = Future()
    before, forwards = engine.counters.seconds, engine.counters.forwards
    running: list[Future[Sampled]] = [
        engine.submit(Trajectory(backbone, model.request(seed, steps=4 * model.steps))) for seed in range(8)
    ]
    while engine.counters.forwards < forwards + 4:
        pass
    began = perf_counter()

    def on_step(done: int, steps: int) -> Callable[[], object] | None:
        return (lambda: first.set_result(perf_counter() - began)) if done == 1 else None

    running.append(engine.submit(Trajectory(backbone, model.request(9), on_step)))
    joined_s = first.result()
    forward_s = (engine.counters.seconds - before) / max(1, engine.counters.forwards - forwards)
    for future in running:
        future.cancel()
    return Figure(f"{model.name}, a joining job's first step over a forward", joined_s / forward_s, "")


STAGES = {"card": of_card, "forwards": of_forwards, "jobs": of_jobs}


def measured(bench: Bench, stages: Sequence[str] = tuple(STAGES)) -> Iterator[Figure]:
    """Yield every figure of the stages, beside what was predicted."""
    with torch.inference_mode():
        for stage in stages:
            for figure in STAGES[stage](bench):
                predicted, goal = PREDICTED.get(figure.name, ("", ""))
                yield Figure(figure.name, figure.value, figure.unit, predicted, goal)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.measure", description="Measure one GPU.")
    parser.add_argument("stages", nargs="*", choices=(*STAGES, []), help="all, if none is named")
    parser.add_argument("--check", action="store_true", help="small networks on the CPU: that measuring works")
    parser.add_argument("--out", type=Path, default=Path("measured.json"))
    given = parser.parse_args(arguments)
    if not given.check and not torch.cuda.is_available():
        print("torch finds no GPU here; --check runs every stage on the CPU, with small networks", file=sys.stderr)
        return 2
    bench = Bench(torch.device("cpu" if given.check else "cuda"), small=given.check)
    found = []
    print(f"{'':56} {'measured':>12} {'':8} {'predicted':38} goal")
    for figure in measured(bench, given.stages or tuple(STAGES)):
        found.append(figure)
        print(f"{figure.name:56} {figure.value:12.4g} {figure.unit:8} {figure.predicted:38} {figure.goal}", flush=True)
    device = torch.cuda.get_device_name() if bench.device.type == "cuda" else platform.processor()
    about = {"device": device, "torch": torch.__version__, "small": bench.small}
    given.out.write_text(json.dumps({**about, "figures": [asdict(figure) for figure in found]}, indent=1) + "\n")
    return 0 if all(isfinite(figure.value) for figure in found) else 1


if __name__ == "__main__":
    sys.exit(main())
