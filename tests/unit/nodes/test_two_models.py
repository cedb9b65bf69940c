"""Two models in one run: one that answers for the negative, and one that a hook leads to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.parity.stack import Stack
from tests.unit.models.sample import write_sample_checkpoint

NODES: dict[str, Any] = {
    "one": ("CheckpointLoaderSimple", {"ckpt_name": "one.safetensors"}),
    "two": ("CheckpointLoaderSimple", {"ckpt_name": "two.safetensors"}),
    "positive": ("CLIPTextEncode", {"text": "a hill", "clip": ["one", 1]}),
    "negative": ("CLIPTextEncode", {"text": "fog", "clip": ["one", 1]}),
    "latent": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
    "noise": ("RandomNoise", {"noise_seed": 5}),
    "sampler": ("KSamplerSelect", {"sampler_name": "euler"}),
}
SETTINGS = {"seed": 5, "steps": 3, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    one = root / "checkpoints" / "one.safetensors"
    write_sample_checkpoint(one)
    generator = torch.Generator().manual_seed(1)
    other = {
        name: (tensor.float() * (1 + 0.2 * torch.randn(tensor.shape, generator=generator))).to(tensor.dtype)
        for name, tensor in load_file(one).items()
    }
    save_file(other, one.with_name("two.safetensors"))
    return root


@pytest.fixture
async def stack(models: Path, tmp_path: Path) -> AsyncIterator[Stack]:
    stack = Stack(models, tmp_path)
    yield stack
    stack.engine.close()


async def guided(stack: Stack, guider: str, *, steps: int = 1, **inputs: Any) -> torch.Tensor:
    """Return what a guider's run ends with."""
    inputs = {"model": ["one", 0], **inputs}
    sigmas = ("BasicScheduler", {"model": ["one", 0], "scheduler": "normal", "steps": steps, "denoise": 1.0})
    links = {name: [name, 0] for name in ("noise", "guider", "sampler", "sigmas")}
    run = ("SamplerCustomAdvanced", {**links, "latent_image": ["latent", 0]})
    nodes = {**NODES, "guider": (guider, inputs), "sigmas": sigmas, "k": run}
    made: torch.Tensor = (await stack.run("k", **nodes))["samples"]
    return made


async def test_a_second_model_answers_for_the_negative(stack: Stack) -> None:
    cond = await guided(stack, "BasicGuider", conditioning=["positive", 0])
    uncond = await guided(stack, "BasicGuider", model=["two", 0], conditioning=["negative", 0])
    both: dict[str, Any] = {"positive": ["positive", 0], "negative": ["negative", 0], "cfg": 4.0}
    made = await guided(stack, "DualModelGuider", **both, model_negative=["two", 0])
    # Latents of one step to nothing are what was denoised, of which guidance makes one.
    torch.testing.assert_close(made, uncond + (cond - uncond) * 4.0, atol=1e-3, rtol=1e-4)
    usual = await guided(stack, "CFGGuider", **both)
    assert (made - usual).abs().mean() > 0.01
    torch.testing.assert_close(await guided(stack, "DualModelGuider", **both), usual)
    torch.testing.assert_close(await guided(stack, "DualModelGuider", **both, model_negative=["one", 0]), usual)


async def test_at_a_scale_of_1_the_second_model_is_not_run(stack: Stack) -> None:
    given: dict[str, Any] = {"positive": ["positive", 0], "model_negative": ["two", 0], "cfg": 1.0}
    made = await guided(stack, "DualModelGuider", **given)
    torch.testing.assert_close(made, await guided(stack, "BasicGuider", conditioning=["positive", 0]))
    assert not any("two" in name for name in stack.weights.resident())


async def test_runs_with_a_second_model_share_forwards_with_others(stack: Stack, models: Path, tmp_path: Path) -> None:
    both: dict[str, Any] = {"positive": ["positive", 0], "negative": ["negative", 0]}
    alone = [
        await guided(stack, "DualModelGuider", **both, model_negative=["two", 0], cfg=4.0, steps=4),
        await guided(stack, "CFGGuider", **both, cfg=3.0, steps=4),
    ]
    other = Stack(models, tmp_path)
    together = await asyncio.gather(
        guided(other, "DualModelGuider", **both, model_negative=["two", 0], cfg=4.0, steps=4),
        guided(other, "CFGGuider", **both, cfg=3.0, steps=4),
    )
    other.engine.close()
    for made, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(made, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("strength", "merging"), [(1.0, 0.0), (0.4, 0.6)])
async def test_a_hook_of_a_model_is_what_a_merge_with_it_is(stack: Stack, strength: float, merging: float) -> None:
    def sampled(model: Any, clip: Any, hooked: bool) -> dict[str, Any]:
        texts = {
            "red": ("CLIPTextEncode", {"text": "red", "clip": clip}),
            "blue": ("CLIPTextEncode", {"text": "blue", "clip": clip}),
        }
        properties = {"strength": 1.0, "set_cond_area": "default", "hooks": ["hook", 0]}
        pair = {"positive_NEW": ["red", 0], "negative_NEW": ["blue", 0], **properties}
        ends = {"positive": ["pair", 0], "negative": ["pair", 1]}
        if not hooked:
            ends = {"positive": ["red", 0], "negative": ["blue", 0]}
        run = ("KSampler", {"model": model, "latent_image": ["latent", 0], **SETTINGS, **ends})
        return {**NODES, **texts, "pair": ("PairConditioningSetProperties", pair), "k": run}

    hook = {"ckpt_name": "two.safetensors", "strength_model": strength, "strength_clip": strength}
    flags = {"apply_to_conds": False, "schedule_clip": False}
    hooks = {
        "hook": ("CreateHookModelAsLora", hook),
        "clip": ("SetClipHooks", {"clip": ["one", 1], "hooks": ["hook", 0], **flags}),
        "model": ("ModelMergeSimple", {"model1": ["one", 0], "model2": ["two", 0], "ratio": merging}),
        "merged": ("CLIPMergeSimple", {"clip1": ["one", 1], "clip2": ["two", 1], "ratio": merging}),
    }
    made = await stack.run("k", **{**sampled(["one", 0], ["clip", 0], True), **hooks})
    merged = await stack.run("k", **{**sampled(["model", 0], ["merged", 0], False), **hooks})
    plain = await stack.run("k", **{**sampled(["one", 0], ["one", 1], False), **hooks})
    torch.testing.assert_close(made["samples"], merged["samples"], atol=2e-2, rtol=1e-3)
    assert (made["samples"] - plain["samples"]).abs().mean() > 0.1
