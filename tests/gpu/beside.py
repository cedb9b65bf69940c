"""ComfyUI on the same card, with the same files: loading, one job at a time, and how far the latents are apart."""

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
from serve_app.models.weights import Weights
from serve_app.recipe import Recipe
from serve_app.sampling.request import SamplingRequest
from serve_app.store.catalog import Catalog
from tests.gpu.bench import Bench, Figure
from tests.gpu.models import Model
from tests.unit.engine.mixes import relative_error
from tests.unit.models.sample import random_tensors

SIDE = Path(__file__).with_name("comfyui_side.py")
SAMPLERS = ("euler", "euler_ancestral", "dpmpp_2m_sde")
SEED = 7
CFG = 5.0
"""Of `Model.request`."""


def of_comfyui(bench: Bench) -> Iterator[Figure]:
    """Measure both on each model's file; nothing where no ComfyUI is named."""
    if bench.comfyui is None:
        return
    for model in bench.models:
        with tempfile.TemporaryDirectory() as directory:
            models = Path(directory)
            folder = models / "diffusion_models"
            folder.mkdir()
            save_file(random_tensors(model.family), folder / "model.safetensors")
            np.savez(folder / "given.npz", **_given(model))
            load_s, ours = _ours(bench, model, models)
            theirs = bench.comfyui.run(str(SIDE), _asked(bench, model), folder)
        yield Figure(f"{model.name}, loaded from the page cache", load_s, "s")
        yield Figure(f"{model.name}, loaded by ComfyUI", float(theirs["load_s"]), "s")
        for sampler in SAMPLERS:
            took_s, latents = ours[sampler]
            their_s = float(np.median(theirs[f"{sampler}|seconds"]))
            yield Figure(f"{model.name}, {sampler}, one job", took_s, "s")
            yield Figure(f"{model.name}, {sampler}, one job over ComfyUI's speed", their_s / took_s, "")
            error = relative_error(latents, torch.from_numpy(theirs[f"{sampler}|latents"]))
            yield Figure(f"{model.name}, {sampler}, latents off ComfyUI's", error, "")


def _request(model: Model, sampler: str) -> SamplingRequest:
    return model.request(SEED, sampler)


def _given(model: Model) -> dict[str, Any]:
    request = _request(model, "euler")
    given: dict[str, Tensor] = {"latents": request.latents}
    for role, conditioning in request.guider.conds.items():
        [(cond, options)] = conditioning
        given[role] = cond
        if "pooled_output" in options:
            given[f"{role} pooled"] = options["pooled_output"]
    return {name: tensor.numpy() for name, tensor in given.items()}


def _asked(bench: Bench, model: Model) -> dict[str, Any]:
    asked = {"family": model.name, "samplers": SAMPLERS, "seed": SEED, "repeats": bench.repeats}
    return asked | {"schedule": "normal", "steps": model.steps, "cfg": CFG}


def _ours(bench: Bench, model: Model, models: Path) -> tuple[float, dict[str, tuple[float, Tensor]]]:
    """Return the seconds of loading, and of each sampler the median seconds of a job and its latents."""
    weights = Weights(Catalog(models), bench.device, dtype="auto", vae_dtype="auto", budget_bytes=32 * 2**30)
    began = perf_counter()
    backbone = weights.backbone(Recipe("backbone", "diffusion_models", "model.safetensors"))
    timeline_of(bench.device).mark().wait()
    load_s = perf_counter() - began
    engine = Engine(2**20, timeline_of(bench.device))
    found: dict[str, tuple[float, Tensor]] = {}
    try:
        for sampler in SAMPLERS:
            seconds = []
            for _ in range(bench.repeats + 1):
                began = perf_counter()
                sampled = engine.submit(Trajectory(backbone, _request(model, sampler))).result()
                seconds.append(perf_counter() - began)
            found[sampler] = (median(seconds[1:]), sampled.latents)
    finally:
        engine.close()
    return load_s, found
