"""From one file: loading and jobs, and ComfyUI with the same file on the same card, with how far latents are apart."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.engine.engine import Engine
from serve_app.engine.timeline import timeline_of
from serve_app.engine.trajectory import Trajectory
from serve_app.models.weights.weights import Weights
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.request import SamplingRequest
from tests.gpu.bench import Bench
from tests.gpu.images import JOBS, loaded
from tests.gpu.models import Model
from tests.gpu.results import Figure
from tests.parity.comfyui import ComfyUI
from tests.unit.engine.mixes import relative_error
from tests.unit.models.sample import random_tensors

SIDE = Path(__file__).with_name("comfyui_side.py")
SAMPLERS = ("euler", "euler_ancestral", "dpmpp_2m_sde")
TOGETHER = "euler"
"""The sampler of eight jobs."""
SEED = 7
CFG = 5.0
"""Of `Model.request`."""


def of_files(bench: Bench) -> Iterator[Figure]:
    """Measure each model's file; where a ComfyUI is named, that too."""
    for model in bench.models:
        with tempfile.TemporaryDirectory() as directory:
            folder = Path(directory) / "diffusion_models"
            folder.mkdir()
            save_file(random_tensors(model.family), folder / "model.safetensors")
            load_s, delay, weights = loaded(bench, Path(directory))
            yield Figure(f"{model.name}, loaded from the page cache beside another's job", load_s, "s")
            yield Figure(f"{model.name}, longest step of that job over the usual", delay, "")
            if bench.comfyui is not None:
                yield from _of_comfyui(bench, bench.comfyui, model, folder, weights)


def _of_comfyui(bench: Bench, comfyui: ComfyUI, model: Model, folder: Path, weights: Weights) -> Iterator[Figure]:
    np.savez(folder / "given.npz", **_given(model))
    ours, eight_s = _ours(bench, model, weights)
    theirs = comfyui.run(str(SIDE), _asked(bench, model), folder)
    yield Figure(f"{model.name}, loaded by ComfyUI", float(theirs["load_s"]), "s")
    for sampler in SAMPLERS:
        took_s, latents = ours[sampler]
        their_s = float(np.median(theirs[f"{sampler}|seconds"]))
        yield Figure(f"{model.name}, {sampler}, one job", took_s, "s")
        yield Figure(f"{model.name}, {sampler}, one job over ComfyUI's speed", their_s / took_s, "")
        error = relative_error(latents, torch.from_numpy(theirs[f"{sampler}|latents"]))
        yield Figure(f"{model.name}, {sampler}, latents off ComfyUI's", error, "")
        if sampler == TOGETHER:
            yield Figure(f"{model.name}, {sampler}, eight jobs over ComfyUI's speed", JOBS * their_s / eight_s, "")


def _request(model: Model, sampler: str) -> SamplingRequest:
    return model.request(SEED, sampler)


def _given(model: Model) -> dict[str, Any]:
    request = _request(model, "euler")
    given: dict[str, Any] = {"latents": request.latents}
    for role, conditioning in request.guider.conds.items():
        [(cond, options)] = conditioning
        given[role] = cond
        if "pooled_output" in options:
            given[f"{role} pooled"] = options["pooled_output"]
    return {name: tensor.numpy() for name, tensor in given.items()}


def _asked(bench: Bench, model: Model) -> dict[str, Any]:
    asked = {"family": model.name, "samplers": SAMPLERS, "seed": SEED, "repeats": bench.repeats}
    return asked | {"schedule": "normal", "steps": model.steps, "cfg": CFG}


def _ours(bench: Bench, model: Model, weights: Weights) -> tuple[dict[str, tuple[float, Tensor]], float]:
    """Return of each sampler the median seconds of a job and its latents, and those of eight jobs together."""
    backbone = weights.backbone(Recipe("backbone", "diffusion_models", "model.safetensors"))
    engine = Engine(2**20, timeline_of(bench.device))

    def run(sampler: str, jobs: int, repeats: int) -> tuple[float, Tensor]:
        seconds = []
        for _ in range(repeats + 1):
            began = perf_counter()
            running = [engine.submit(Trajectory(backbone, _request(model, sampler))) for _ in range(jobs)]
            sampled = [future.result() for future in running]
            seconds.append(perf_counter() - began)
        return median(seconds[1:]), sampled[0].latents

    try:
        one = {sampler: run(sampler, 1, bench.repeats) for sampler in SAMPLERS}
        return one, run(TOGETHER, JOBS, min(3, bench.repeats))[0]
    finally:
        engine.close()
