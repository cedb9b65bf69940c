"""Strict work is done apart from all other: to the bit what it is alone, whatever else runs."""

from __future__ import annotations

import asyncio

import pytest
import torch
from safetensors.torch import save_file

from serve_app.engine.runtime import EngineRuntime
from serve_app.models.families import AutoencoderKL, ClipText, Sd
from serve_app.recipe.layers import EasyCache
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.weights import Lora
from serve_app.store.models.catalog import Catalog
from tests.unit.engine import mixes
from tests.unit.models.sample import cpu_weights, random_tensors

UNET = Sd((32,), (1,), (1,), 1, 64)
VAE = AutoencoderKL((32, 32, 32, 32), 1, 4, 3, True)
TEXT = ClipText(1, 64, 64, 77)
BACKBONE, CLIP, VAE_RECIPE = (Recipe(part, "checkpoints", "a.safetensors") for part in ("backbone", "clip", "vae"))
STYLED = BACKBONE.with_patch(Lora("style.safetensors", 0.8))


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    (root / "checkpoints").mkdir()
    (root / "loras").mkdir()
    save_file(random_tensors(UNET) | random_tensors(VAE) | random_tensors(TEXT), root / "checkpoints/a.safetensors")
    draw = torch.Generator().manual_seed(3)
    query = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    style = {
        f"{query}.lora_up.weight": torch.randn(32, 4, generator=draw),
        f"{query}.lora_down.weight": torch.randn(4, 32, generator=draw),
    }
    save_file(style, root / "loras" / "style.safetensors")
    return Catalog(root)


@pytest.fixture
def shared(engine, catalog):
    return EngineRuntime(engine, cpu_weights(catalog))


def ignore(done, steps):
    pass


async def picture(runtime, seed, backbone=BACKBONE, steps=4):
    """Return a text's conditioning, latents sampled with it, and the image of them."""
    text = await runtime.encode_text(CLIP, f"a (red:1.{seed}) fox {'and a hen ' * seed}")
    request = mixes.request(backbone=backbone, positive=text, negative=text, seed=seed, steps=steps, schedule="karras")
    latents = (await runtime.sample(request)).latents
    return text[0][0], latents, await runtime.decode(VAE_RECIPE, latents)


def equal(ours, theirs):
    return [torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)]


@pytest.mark.parametrize("backbone", [BACKBONE, STYLED], ids=["plain", "under a LoRA"])
async def test_a_strict_run_among_others_is_to_the_bit_what_it_is_alone(shared, backbone):
    strict, usual = shared.bind(ignore, strict=True), shared.bind(ignore)
    alone = await picture(strict, 1, backbone)
    # Long alone, a set of LoRAs is merged, which rounds otherwise; a strict run must not see that.
    await picture(usual, 2, backbone, steps=24)
    storm = [picture(usual, seed, recipe) for seed in range(1, 7) for recipe in (BACKBONE, STYLED)]
    among, also, *_ = await asyncio.gather(picture(strict, 1, backbone), picture(strict, 1, backbone), *storm)
    assert equal(alone, among) == equal(alone, also) == [True] * 3
    assert equal(alone, await picture(strict, 1, backbone)) == [True] * 3


async def test_a_strict_run_shares_no_forward_and_others_do(engine, shared):
    strict, usual = shared.bind(ignore, strict=True), shared.bind(ignore)
    conditioning = [(torch.randn(1, 77, 64), {})]

    async def forwards(*runtimes):
        before = engine.counters.forwards
        request = mixes.request(positive=conditioning, negative=conditioning, schedule="karras", backbone=BACKBONE)
        await asyncio.gather(*(runtime.sample(request) for runtime in runtimes))
        return engine.counters.forwards - before

    await forwards(usual)
    assert await forwards(strict, strict, strict) == 12
    assert await forwards(usual, usual, usual) < 12


async def evaluations(engine, runtime, backbone=BACKBONE, **bound):
    """Return how many evaluations a sampling of ten steps has."""
    before = engine.counters.evaluations
    await picture(runtime.bind(ignore, **bound), 1, backbone, steps=10)
    return engine.counters.evaluations - before


async def test_a_pools_step_cache_is_for_samplings_that_have_none_and_are_not_strict(engine, catalog):
    weights = cpu_weights(catalog)
    plain, cached = EngineRuntime(engine, weights), EngineRuntime(engine, weights, step_cache=EasyCache(9.0, 0.0, 0.8))
    assert await evaluations(engine, plain) == await evaluations(engine, cached, strict=True) == 10
    # The change of an output is known from the second step on, and above the last fifth all is computed.
    assert 2 < await evaluations(engine, cached) < 8
    assert await evaluations(engine, cached, BACKBONE.with_patch(EasyCache(0.0, 0.0, 0.8))) == 10


async def test_a_run_that_skips_steps_leaves_those_that_share_its_forwards_as_they_are(engine, catalog):
    weights = cpu_weights(catalog)
    plain, cached = EngineRuntime(engine, weights), EngineRuntime(engine, weights, step_cache=EasyCache(9.0, 0.0, 0.8))
    nodes = plain.bind(ignore), cached.bind(ignore)
    alone = [await picture(node, 1, steps=10) for node in nodes]
    before = engine.counters.evaluations
    together = await asyncio.gather(*(picture(node, 1, steps=10) for node in nodes))
    assert engine.counters.evaluations - before < 2 * 10
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one[1], other[1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(alone[0][1], alone[1][1], atol=1e-3)
