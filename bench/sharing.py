"""What jobs gain by sharing forwards when they differ in more than prompts, in this process: engine, no server.

Eight jobs with a LoRA each against eight without; eight jobs of which some have a ControlNet, together against one
after another; and how long a job that comes while others are sampled waits for its first evaluation.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench.series import Ratio, Series, ratio
from bench.workflows import CFG, NEGATIVE, SIDE, STEPS, TEXTS
from serve_app.engine.engine import Engine
from serve_app.engine.runtime import EngineRuntime
from serve_app.engine.timeline import timeline_of
from serve_app.execution.runtime import Runtime
from serve_app.models.weights.weights import Weights
from serve_app.nodes.conditioning.controlnet import control_net_apply_advanced
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.weights import Lora
from serve_app.sampling.request import SamplingRequest, Steps
from serve_app.store.models.catalog import Catalog
from serve_app.values import Cfg, Conditioning, Guider, Noise, SamplerChoice
from tests.parity.make_checkpoint import MAKERS

NAME = "sharing"
JOBS = 8
RANK = 8
CHECKPOINT = "sd15"
CONTROLLED = "mini15"


def measure(models: Path, rounds: int) -> tuple[list[Series], list[Ratio]]:
    """Time every pair in turns, `rounds` times, after one that warms up. models: holds sd15 and mini15."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        (root / "checkpoints").symlink_to(models / "checkpoints")
        _write_loras(root / "loras")
        _write_control_net(root / "controlnet")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        engine = Engine(2 * JOBS * (SIDE // 8) ** 2, timeline_of(device))
        try:
            weights = Weights(Catalog(root), device, dtype="auto", vae_dtype="auto", budget_bytes=24 * 2**30)
            return asyncio.run(_measure(engine, EngineRuntime(engine, weights), rounds))
        finally:
            engine.close()


async def _measure(engine: Engine, shared: EngineRuntime, rounds: int) -> tuple[list[Series], list[Ratio]]:
    cases = ("no LoRA", "eight LoRAs", "controls together", "controls one by one")
    seconds: dict[str, list[float]] = {case: [] for case in cases}
    waits: list[float] = []
    runtime = shared.bind(lambda done, steps: None)
    plain = [await _job(runtime, CHECKPOINT, i) for i in range(JOBS)]
    with_lora = [await _job(runtime, CHECKPOINT, i, lora=f"{i}.safetensors") for i in range(JOBS)]
    controlled = [await _job(runtime, CONTROLLED, i, control=i % 2 == 0) for i in range(JOBS)]
    for turn in range(rounds + 1):
        taken = {
            "no LoRA": await _together(runtime, plain),
            "eight LoRAs": await _together(runtime, with_lora),
            "controls together": await _together(runtime, controlled),
            "controls one by one": await _one_by_one(runtime, controlled),
        }
        wait = await _wait_of_a_join(engine, shared, plain)
        if turn:
            waits.append(wait)
            for case, value in taken.items():
                seconds[case].append(value)
    series = {
        case: Series(NAME, f"{CONTROLLED if 'control' in case else CHECKPOINT}, {case}", "serve-app", "s", values)
        for case, values in seconds.items()
    }
    joining = Ratio(NAME, "a joining job's wait over a step of all eight jobs", waits, "<= 1.2")
    return list(series.values()), [
        ratio(NAME, "speed of eight LoRAs over none", series["no LoRA"], series["eight LoRAs"], ">= 0.8"),
        ratio(
            NAME,
            "speed of mixed ControlNet rows together over one by one",
            series["controls one by one"],
            series["controls together"],
            ">= 1.5",
        ),
        joining,
    ]


async def _job(
    runtime: Runtime, checkpoint: str, seed: int, *, lora: str | None = None, control: bool = False
) -> SamplingRequest:
    name = f"{checkpoint}.safetensors"
    clip, backbone = Recipe("clip", "checkpoints", name), Recipe("backbone", "checkpoints", name)
    if lora is not None:
        backbone = backbone.with_patch(Lora(lora, 0.8))
    positive = await runtime.encode_text(clip, TEXTS[seed % len(TEXTS)])
    negative: Conditioning = await runtime.encode_text(clip, NEGATIVE)
    if control:
        hint = torch.rand(1, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(seed))
        control_net = Recipe("controlnet", "controlnet", "control.safetensors")
        positive, negative = control_net_apply_advanced(positive, negative, control_net, hint, 0.8, 0.0, 1.0)
    return SamplingRequest(
        Guider(backbone, {"positive": positive, "negative": negative}, Cfg(CFG)),
        latents=torch.zeros(1, 4, SIDE // 8, SIDE // 8),
        sampler=SamplerChoice("euler"),
        sigmas=Steps("normal", STEPS),
        noise=Noise(seed),
    )


async def _together(runtime: Runtime, jobs: Sequence[SamplingRequest]) -> float:
    began = time.perf_counter()
    await asyncio.gather(*(runtime.sample(job) for job in jobs))
    return time.perf_counter() - began


async def _one_by_one(runtime: Runtime, jobs: Sequence[SamplingRequest]) -> float:
    began = time.perf_counter()
    for job in jobs:
        await runtime.sample(job)
    return time.perf_counter() - began


async def _wait_of_a_join(engine: Engine, shared: EngineRuntime, jobs: Sequence[SamplingRequest]) -> float:
    """Return how long one more job waits until its first step begins, over what a step of all takes meanwhile.

    Its first progress report comes after its first evaluation, which is one forward after it began to be answered. A
    step of all is one forward or several, as the engine finds quicker.
    """
    first = asyncio.Event()
    quiet = shared.bind(lambda done, steps: None)
    others = [asyncio.create_task(quiet.sample(job)) for job in jobs[1:]]
    before = engine.counters.forwards
    while engine.counters.forwards == before:
        await asyncio.sleep(0.005)
    # Between two forwards of the others, at some moment of the running one.
    await asyncio.sleep(0.05)
    forwards, evaluations, began = engine.counters.forwards, engine.counters.evaluations, time.perf_counter()
    late = shared.bind(lambda done, steps: first.set())
    joining = asyncio.create_task(late.sample(jobs[0]))
    await first.wait()
    answered_s = time.perf_counter() - began
    forward_s = answered_s / max(1, engine.counters.forwards - forwards)
    step_s = len(jobs) * answered_s / max(1, engine.counters.evaluations - evaluations)
    await asyncio.gather(joining, *others)
    return (answered_s - forward_s) / step_s


def _write_loras(folder: Path) -> None:
    """Write a low-rank change of every attention map of sd15's backbone, once a job."""
    folder.mkdir()
    widths = {0: 320, 1: 640, 2: 1280}
    blocks = [(f"down_blocks_{level}_attentions_{i}", widths[level]) for level in range(3) for i in range(2)]
    blocks += [(f"up_blocks_{level}_attentions_{i}", widths[3 - level]) for level in (1, 2, 3) for i in range(3)]
    blocks.append(("mid_block_attentions_0", 1280))
    for job in range(JOBS):
        drawn = torch.Generator().manual_seed(job)
        tensors = {}
        for block, width in blocks:
            for attention, read in (("attn1", width), ("attn2", 768)):
                for layer, inward in (("to_q", width), ("to_k", read), ("to_v", read), ("to_out_0", width)):
                    key = f"lora_unet_{block}_transformer_blocks_0_{attention}_{layer}"
                    tensors[f"{key}.lora_down.weight"] = torch.randn(RANK, inward, generator=drawn) / inward
                    tensors[f"{key}.lora_up.weight"] = torch.randn(width, RANK, generator=drawn) / RANK
                    tensors[f"{key}.alpha"] = torch.tensor(float(RANK))
        save_file(tensors, str(folder / f"{job}.safetensors"))


def _write_control_net(folder: Path) -> None:
    folder.mkdir()
    save_file(MAKERS["controlnet"](), str(folder / "control.safetensors"))
