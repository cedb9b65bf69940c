"""What an image takes from its text to its pixels on the host, and a second model that is loaded meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

import torch
from torch import Tensor

from serve_app.engine.engine import Engine
from serve_app.engine.text_generation import TEXTS_TOGETHER
from serve_app.engine.timeline import timeline_of
from serve_app.engine.trajectory import Trajectory
from serve_app.models.weights.weights import Weights
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.request import Sampled
from serve_app.sampling.transfer import to_host, unpinned
from serve_app.store.models.catalog import Catalog
from tests.gpu.bench import Bench
from tests.gpu.models import FULL_VAE, SMALL_VAE, Model, vae
from tests.gpu.results import Figure

JOBS = 8
EACH = 3
"""Images that each of several jobs makes, one after another."""


def of_images(bench: Bench) -> Iterator[Figure]:
    """Measure images of one job and of eight, from texts to pixels; what a server does around them is not in it."""
    for model in bench.models:
        engine = Engine(2**20, timeline_of(bench.device))
        try:
            yield from _of_model(model, _images(bench, engine, model))
        finally:
            engine.close()


def _of_model(model: Model, image: Callable[[int], Tensor]) -> Iterator[Figure]:
    image(0)
    began = perf_counter()
    for seed in range(EACH):
        image(seed)
    alone = perf_counter()
    yield Figure(f"{model.name}, image of 1 job", (alone - began) / EACH, "s")
    with ThreadPoolExecutor(JOBS) as jobs:
        made = len(list(jobs.map(image, range(JOBS * EACH))))
    yield Figure(f"{model.name}, images a second of {JOBS} jobs", made / (perf_counter() - alone), "")


def _images(bench: Bench, engine: Engine, model: Model) -> Callable[[int], Tensor]:
    """Return what makes the image of a seed, as nodes of a text to image do; several threads may at once."""
    backbone, clip = model.backbone(bench.device, bench.dtype), model.clip(bench.device)
    of_vae = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
    decoder = vae(SMALL_VAE if bench.small else FULL_VAE, bench.device, of_vae)

    def image(seed: int) -> Tensor:
        asked = [f"a house, {seed}", "a fox"]
        texts = [engine.gather(text, clip.encode, "texts", most=TEXTS_TOGETHER) for text in asked]
        positive, negative = (text.result() for text in texts)
        request = model.request(seed, positive=positive, negative=negative)
        latents = engine.submit(Trajectory(backbone, request)).result().latents
        return unpinned(engine.call(lambda: to_host(decoder.decode(latents)), side_stream=True).result())

    return image


def _await(running: Future[Sampled], reached: Callable[[], bool]) -> None:
    """Return once a job has reached something. Errors: the job's, or RuntimeError, if it ends before."""
    while not reached():
        if running.done():
            raise RuntimeError("the job has ended too early") from running.exception()
        sleep(0.001)


def loaded(bench: Bench, folder: Path) -> tuple[float, float, Weights]:
    """Load "diffusion_models/model.safetensors", which is in the page cache, while jobs of a model run.

    Return the seconds it took, the longest step meanwhile over the usual one, and the weights.
    """
    model = bench.models[0]
    backbone = model.backbone(bench.device, bench.dtype)
    timeline = timeline_of(bench.device)
    engine, told = Engine(2**20, timeline), list[float]()

    def on_step(done: int, steps: int) -> Callable[[], object]:
        return lambda: told.append(perf_counter())

    running = engine.submit(Trajectory(backbone, model.request(1, steps=10_000), on_step))
    _await(running, lambda: len(told) >= 4)
    weights = Weights(Catalog(folder), bench.device, dtype="auto", vae_dtype="auto", budget_bytes=32 * 2**30)
    began = perf_counter()
    with torch.no_grad(), timeline.enqueueing():
        weights.backbone(Recipe("backbone", "diffusion_models", "model.safetensors"))
        timeline.mark().wait()
    ended = perf_counter()
    _await(running, lambda: told[-1] >= ended)
    running.cancel()
    engine.close()
    steps = list(pairwise(told))
    usual = median(later - earlier for earlier, later in steps if later < began)
    longest = max(later - earlier for earlier, later in steps if later > began and earlier < ended)
    return ended - began, longest / usual, weights
