"""What a job costs over its network evaluations alone: in the engine, and from end to end over HTTP.

The engine's share is a few milliseconds in seconds, less than the noise between two runs. So it is taken within one:
the time of a whole sampling, over that spent in the network meanwhile. Bare forwards in a loop are timed as well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.client import Awaiting
from bench.series import Ratio, Series, ratio
from bench.servers import Contender, running
from bench.workflows import CFG, NEGATIVE, SIDE, STEPS, TEXTS, txt2img
from serve_app.config.pool import PoolConfig
from serve_app.engine.engine import Engine
from serve_app.engine.runtime import EngineRuntime
from serve_app.engine.timeline import timeline_of
from serve_app.models.backbone import RecipeBackbone
from serve_app.models.families.family import Rows
from serve_app.models.network import LoadedNetwork
from serve_app.models.weights.residency import Hold
from serve_app.models.weights.weights import Weights
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.request import SamplingRequest, Steps
from serve_app.store.models.catalog import Catalog
from serve_app.values import Cfg, Guider, Noise, SamplerChoice

NAME = "overhead"


class TimedNetwork:
    """A network that adds up the seconds spent in it and keeps what it was last asked."""

    def __init__(self, network: LoadedNetwork) -> None:
        self._network = network
        self.seconds = 0.0
        self.asked: Sequence[Rows] = ()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def answer(self, rows: Sequence[Rows]) -> list[Tensor]:
        """Return the network's answers, once the device has finished them."""
        self.asked = rows
        self._finish()
        began = time.perf_counter()
        answers = self._network.answer(rows)
        self._finish()
        self.seconds += time.perf_counter() - began
        return answers

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class TimedWeights(Weights):
    """Weights that hand out one timed network."""

    timed: TimedNetwork | None = None

    def backbone(self, recipe: Recipe, hold: Hold | None = None) -> RecipeBackbone:
        backbone = super().backbone(recipe, hold)
        if self.timed is None:
            self.timed = TimedNetwork(backbone.network)
        timed: Any = self.timed
        return replace(backbone, network=timed)


def measure(contender: Contender, checkpoint: str, rounds: int) -> tuple[list[Series], list[Ratio]]:
    """Time one sampling in this process, its forwards alone, and a whole job of a server, in turns."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weights = TimedWeights(Catalog(contender.models), device, dtype="auto", vae_dtype="auto", budget_bytes=8 * 2**30)
    engine = Engine(PoolConfig(name="gpu").max_cells, timeline_of(device))
    figures: dict[str, list[float]] = {"sampling": [], "its forwards": [], "bare forwards": [], "whole job": []}
    try:
        with running(contender) as server:
            client = Awaiting(server.client, server.port, NAME)
            # The first job loads the weights.
            client.run(txt2img(checkpoint))
            for turn in range(rounds + 1):
                sampling, forwards = asyncio.run(_sample(engine, weights, checkpoint, seed=turn))
                bare = engine.call(lambda: _bare(weights)).result()
                whole = client.run(txt2img(checkpoint))
                if turn > 0:
                    for values, value in zip(figures.values(), (sampling, forwards, bare, whole), strict=True):
                        values.append(value)
            client.close()
    finally:
        engine.close()
    series = {what: Series(NAME, f"{checkpoint}, {what}", "serve-app", "s", v) for what, v in figures.items()}
    ratios = [
        ratio(NAME, f"{checkpoint}: sampling over its forwards", series["sampling"], series["its forwards"], "<= 1.03"),
        ratio(NAME, f"{checkpoint}: sampling over bare forwards", series["sampling"], series["bare forwards"]),
        ratio(NAME, f"{checkpoint}: whole job over bare forwards", series["whole job"], series["bare forwards"]),
    ]
    return list(series.values()), ratios


async def _sample(engine: Engine, weights: TimedWeights, checkpoint: str, seed: int) -> tuple[float, float]:
    """Return the seconds one sampling took, as a node awaits it, and those of them spent in the network."""
    name = f"{checkpoint}.safetensors"
    runtime = EngineRuntime(engine, weights).bind(lambda done, steps: None)
    positive, negative = [
        await runtime.encode_text(Recipe("clip", "checkpoints", name), t) for t in (TEXTS[0], NEGATIVE)
    ]
    request = SamplingRequest(
        Guider(Recipe("backbone", "checkpoints", name), {"positive": positive, "negative": negative}, Cfg(CFG)),
        latents=torch.zeros(1, 4, SIDE // 8, SIDE // 8),
        sampler=SamplerChoice("euler"),
        sigmas=Steps("normal", STEPS),
        noise=Noise(seed),
    )
    before = weights.timed.seconds if weights.timed else 0.0
    began = time.perf_counter()
    await runtime.sample(request)
    took_s = time.perf_counter() - began
    assert weights.timed is not None
    return took_s, weights.timed.seconds - before


def _bare(weights: TimedWeights) -> float:
    """Return the seconds of as many forwards as a sampling has, with its last rows, in the engine's thread."""
    assert weights.timed is not None
    before = weights.timed.seconds
    for _ in range(STEPS):
        weights.timed.answer(weights.timed.asked)
    return weights.timed.seconds - before
