"""What a step cache leaves out of the shipped network's samplings, and how far pictures move.

`python -m bench.step_cache`. Each round samples the same prompts and seeds without a cache and at each threshold, in
one process. Skipped is the share of the network's evaluations that were not computed; time is the process's own, over
that of the round without a cache.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from time import process_time

import torch
from torch import Tensor

from serve_app.engine.engine import Engine
from serve_app.engine.runtime import EngineRuntime
from serve_app.engine.timeline import timeline_of
from serve_app.models.shipped import CHECKPOINT, SHIPPED
from serve_app.models.weights.weights import Weights
from serve_app.recipe.layers import EasyCache
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.request import SamplingRequest, Steps
from serve_app.store.models.catalog import Catalog
from serve_app.values import Cfg, Conditioning, Guider, Noise, SamplerChoice

THRESHOLDS = (0.05, 0.1, 0.2, 0.4)
NONE = 0.0
PROMPTS = tuple(
    f"a large {colour} {shape} {place}, {ground} background"
    for colour, shape, place, ground in (
        ("red", "circle", "on the left", "blue"),
        ("green", "square", "in the middle", "yellow"),
        ("blue", "triangle", "at the top", "red"),
        ("yellow", "star", "in the middle", "purple"),
    )
)
CFG, CELLS = 5.0, 14


@dataclass
class Of:
    """Figures of one threshold, a number a round, and of psnr one a picture, in dB."""

    skipped: list[float] = field(default_factory=list)
    time: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)


def main() -> None:
    """Print a row for each sampler, number of steps and threshold."""
    parser = argparse.ArgumentParser(prog="python -m bench.step_cache", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"load before: {os.getloadavg()[0]:.1f}")
    print(f"{'sampler':<10}{'steps':>6}{'threshold':>10}{'skipped':>9}{'time':>7}{'psnr':>7}{'least':>7}")
    for sampler, steps in (("euler", 20), ("dpmpp_2m", 20), ("euler", 40)):
        for threshold, of in asyncio.run(_measured(sampler, steps, asked.rounds)).items():
            print(
                f"{sampler:<10}{steps:>6}{threshold:>10}{median(of.skipped):>9.0%}{median(of.time):>7.2f}"
                f"{median(of.psnr):>7.1f}{min(of.psnr):>7.1f}",
                flush=True,
            )
    print(f"load after: {os.getloadavg()[0]:.1f}")


async def _measured(sampler: str, steps: int, rounds: int) -> dict[float, Of]:
    found = {threshold: Of() for threshold in THRESHOLDS}
    engine = Engine(2 * CELLS**2, timeline_of(torch.device("cpu")))
    weights = Weights(Catalog(SHIPPED), torch.device("cpu"), dtype="auto", vae_dtype="auto", budget_bytes=10**9)
    try:
        for turn in range(rounds):
            drawn: dict[float, tuple[list[Tensor], int, float]] = {}
            for threshold in (NONE, *THRESHOLDS):
                cache = EasyCache(threshold) if threshold else None
                runtime = EngineRuntime(engine, weights, step_cache=cache)
                drawn[threshold] = await _pictures(engine, runtime, sampler, steps, turn)
            plain, evaluations, seconds = drawn[NONE]
            for threshold, of in found.items():
                pictures, fewer, less = drawn[threshold]
                of.skipped.append(1 - fewer / evaluations)
                of.time.append(less / seconds)
                of.psnr += [_psnr(one, other) for one, other in zip(pictures, plain, strict=True)]
    finally:
        engine.close()
    return found


async def _pictures(
    engine: Engine, runtime: EngineRuntime, sampler: str, steps: int, turn: int
) -> tuple[list[Tensor], int, float]:
    """Return pictures of all prompts, one after another, the evaluations of the network, and the seconds they took."""
    clip, backbone, vae = (Recipe(part, "checkpoints", CHECKPOINT) for part in ("clip", "backbone", "vae"))
    node = runtime.bind(lambda done, steps: None)
    texts: Sequence[Conditioning] = [await node.encode_text(clip, text) for text in (*PROMPTS, "")]
    before, began_s = engine.counters.evaluations, process_time()
    latents = []
    for number, text in enumerate(texts[:-1]):
        request = SamplingRequest(
            Guider(backbone, {"positive": text, "negative": texts[-1]}, Cfg(CFG)),
            latents=torch.zeros(1, 4, CELLS, CELLS),
            sampler=SamplerChoice(sampler),
            sigmas=Steps("normal", steps),
            noise=Noise(100 * turn + number),
        )
        latents.append((await node.sample(request)).latents)
    took = engine.counters.evaluations - before, process_time() - began_s
    return [await node.decode(vae, one) for one in latents], *took


def _psnr(one: Tensor, other: Tensor) -> float:
    """Return the peak signal-to-noise ratio of two pictures in 0…1, in dB; 99 for equal ones."""
    error = float((one - other).square().mean())
    return 99.0 if error == 0 else float(-10 * torch.log10(torch.tensor(error)))


if __name__ == "__main__":
    main()
