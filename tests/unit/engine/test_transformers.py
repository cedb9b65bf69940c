"""Diffusion transformers through loaders, sampler and decoder, and in any mix of jobs: each gets what it gets alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from serve_app.engine.engine import Engine
from serve_app.engine.runtime import EngineRuntime
from serve_app.engine.timeline import HostTimeline
from serve_app.models.families import AutoencoderKL, Wan
from serve_app.models.families.dit.anima import IDS, WEIGHTS
from serve_app.models.families.dit.hidream import STATES
from serve_app.nodes.latent.latents import vae_decode
from serve_app.nodes.loaders.models import unet_loader, vae_loader
from serve_app.nodes.sampling.ksampler import ksampler
from serve_app.recipe.layers import ReferenceMethod
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.weights import Lora
from serve_app.sampling.request import SamplingRequest
from serve_app.store.models.catalog import Catalog
from serve_app.values import ClipVisionOutput, Conditioning
from tests.examples import fewer
from tests.parity.dit_cases import LLAMA_STATES, POOLED_WIDTH, TEXT_WIDTH, noise, weights
from tests.parity.figures import GOLDEN
from tests.unit.engine import mixes
from tests.unit.models.sample import cpu_weights, random_tensors

SEEN_WIDTH = 40
"""Of what Wan is told that is seen in images."""
KEYS = json.loads((GOLDEN / "dit_keys.json").read_text())
WAN = random_tensors(Wan(128, 2, 192, TEXT_WIDTH, 36, SEEN_WIDTH), torch.float32)
KEYS["wan"] = {name.removeprefix("model.diffusion_model."): list(tensor.shape) for name, tensor in WAN.items()}
NETS = ("zimage", "flux", "flux_depth", "flux_fill", "lumina2", "chroma", "sd35", "omnigen2")
WITHOUT_IMAGES = ("flux2", "flux2_klein", "krea2", "qwen", "anima", "hidream", "auraflow", "pixart", "wan")
"""Networks of another autoencoder's latents, or told more than one text."""
SHAPES = {
    **dict.fromkeys(("flux2", "flux2_klein"), (128,)),
    **dict.fromkeys(("krea2", "qwen", "anima"), (16, 1)),
    "wan": (16, 2),
    **dict.fromkeys(("auraflow", "pixart"), (4,)),
}
"""The first axes of latents, after the batch, where they are not (16,)."""
LAYER = {
    "zimage": "layers.1.attention.qkv",
    "flux": "single_blocks.1.linear1",
    "lumina2": "layers.1.attention.qkv",
    "chroma": "double_blocks.0.txt_attn.qkv",
    "sd35": "joint_blocks.1.x_block.attn.qkv",
    "flux2": "double_blocks.1.img_attn.qkv",
    "flux2_klein": "single_blocks.0.linear1",
    "krea2": "blocks.1.attn.wq",
    "qwen": "transformer_blocks.1.attn.to_k",
    "anima": "blocks.1.cross_attn.q_proj",
    "hidream": "double_stream_blocks.0.block.ff_i.experts.1.w1",
    "auraflow": "single_layers.0.attn.w1v",
    "omnigen2": "layers.1.attn.to_q",
    "pixart": "blocks.1.cross_attn.kv_linear",
    "wan": "blocks.1.cross_attn.k_img",
}
USUAL = ("flux", "lumina2", "sd35", "wan")
"""Of which jobs are mixed in short tests; parity.test_dit compares rows of several cases in one forward, of all."""
METHODS = {
    "flux": ("offset", "index", "uxo"),
    "flux2": ("offset", "index", "uxo", "index_timestep_zero"),
    "flux2_klein": ("index", "index_timestep_zero"),
    "krea2": ("index", "index_timestep_zero"),
    "qwen": ("offset", "index", "negative_index", "index_timestep_zero"),
    "omnigen2": ("",),
}
VAE = AutoencoderKL((32, 32, 32, 32), 1, 16, 3, False)
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    root: Path = tmp_path_factory.mktemp("models")
    for folder in ("unet", "diffusion_models", "vae", "loras"):
        (root / folder).mkdir()
    for name in NETS + WITHOUT_IMAGES:
        folder = "unet" if name == "flux" else "diffusion_models"
        save_file(weights(KEYS[name]), root / folder / f"{name}.safetensors")
    tensors = random_tensors(VAE, torch.float32)
    save_file({k.removeprefix("first_stage_model."): v for k, v in tensors.items()}, root / "vae" / "ae.safetensors")
    for net, layer in LAYER.items():
        out, inside = KEYS[net][f"{layer}.weight"]
        for number in (1, 2):
            pair = {
                "lora_up": noise(f"{number} up", (out, 2)) / 2,
                "lora_down": noise(f"{number} down", (2, inside)) / 9,
            }
            named = {f"diffusion_model.{layer}.{name}.weight": tensor for name, tensor in pair.items()}
            save_file(named, root / "loras" / f"{net}{number}.safetensors")
    return Catalog(root)


@pytest.fixture(scope="module")
def shared(catalog: Catalog) -> Iterator[EngineRuntime]:
    engine = Engine(mixes.MAX_CELLS, HostTimeline())
    yield EngineRuntime(engine, cpu_weights(catalog))
    engine.close()


def text(seed: int, length: int, **options: Any) -> Conditioning:
    pooled = noise(f"pooled {seed}", (1, POOLED_WIDTH))
    return [(noise(f"text {seed}", (1, length, TEXT_WIDTH)), {"pooled_output": pooled, **options})]


def ignore(done: int, steps: int) -> None:
    pass


@pytest.mark.parametrize("net", NETS)
async def test_a_file_of_its_own_makes_images_through_the_nodes(shared: EngineRuntime, net: str) -> None:
    runtime: Any = shared.bind(ignore)
    model = unet_loader(f"{net}.safetensors", "default")
    vae = vae_loader("ae.safetensors")
    latent = {"samples": torch.zeros(1, 16, 6, 9)}
    conds = text(1, 5), text(2, 7)
    sampled = await ksampler(model, 3, 4, 2.0, "euler", "simple", *conds, latent, runtime)
    images = await vae_decode(vae, sampled, runtime)
    assert images.shape == (1, 48, 72, 3)
    assert sampled["samples"].isfinite().all()
    assert float(sampled["samples"].std()) > 0.5
    other = await ksampler(model, 3, 4, 2.0, "euler", "simple", conds[1], conds[0], latent, runtime)
    assert mixes.relative_error(other["samples"], sampled["samples"]) > 0.01


@st.composite
def texts(draw: st.DrawFn, net: str, seeds: tuple[int, int], lengths: list[int], options: Any = None) -> Conditioning:
    """Any text of a network: of a length, with what else the network reads of it."""
    seed, length, options = draw(st.integers(*seeds)), draw(st.sampled_from(lengths)), dict(options or {})
    if net == "anima" and draw(st.booleans()):
        ids, of_ids = (noise(f"{what} {seed}", (1, draw(st.sampled_from([2, 7])))) for what in (IDS, WEIGHTS))
        options |= {IDS: (1000 * ids.abs()).int(), WEIGHTS: of_ids[:, :1].abs().expand_as(ids)}
    if net == "hidream":
        options[STATES] = noise(f"states {seed}", (1, LLAMA_STATES, draw(st.sampled_from([4, 6])), TEXT_WIDTH))
    return text(seed, length, **options)


@st.composite
def jobs(draw: st.DrawFn, net: str) -> SamplingRequest:
    """Any job of a network: sizes, texts of any length, guidance, references, LoRAs and their strengths, levels."""
    recipe = Recipe("backbone", "diffusion_models", f"{net}.safetensors")
    for number in draw(st.sets(st.sampled_from([1, 2]))):
        recipe = recipe.with_patch(Lora(f"{net}{number}.safetensors", draw(st.sampled_from([0.5, 1.0]))))
    options: dict[str, Any] = {"guidance": draw(st.sampled_from([1.0, 3.5, None]))}
    axes = SHAPES.get(net, (16,))
    if net in METHODS and draw(st.booleans()):
        sizes = draw(st.sampled_from([((4, 6),), ((4, 6), (5, 4))]))
        options["reference_latents"] = [noise(f"reference {size}", (1, *axes, *size)) for size in sizes]
        options["reference_latents_method"] = draw(st.sampled_from(METHODS[net]))
    length = draw(st.sampled_from([3, 5, 33]))
    if net == "flux" and draw(st.booleans()):
        options["attention_mask"] = noise("bias", (1, length + 1, length + 1))
        options["attention_mask_img_shape"] = (1, 1)
    size = draw(st.sampled_from([(4, 4), (5, 4), (6, 8), (2, 2)]))
    if net == "hidream" and draw(st.booleans()):
        options["concat_latent_image"] = noise("beside", (1, *axes, size[0], 6))
    if net == "wan" and draw(st.booleans()):
        options["concat_latent_image"] = noise("beside", (1, *axes, *size))
        seen = noise("seen", (1, draw(st.sampled_from([3, 6])), SEEN_WIDTH))
        options["clip_vision_output"] = ClipVisionOutput(seen, seen, seen)
    return mixes.request(
        backbone=recipe,
        shape=(draw(st.integers(1, 2)), *axes, *size),
        positive=draw(texts(net, (1, 5), [length], options)),
        negative=draw(texts(net, (6, 9), [1, 5])),
        cfg=draw(st.sampled_from([1.0, 3.0])),
        sampler=draw(st.sampled_from(["euler", "res_multistep", "dpmpp_2m"])),
        schedule=draw(st.sampled_from(["simple", "beta"])),
        steps=draw(st.integers(1, 4)),
        seed=draw(st.integers(0, 9)),
    )


@pytest.mark.parametrize("net", [pytest.param(net, marks=() if net in USUAL else pytest.mark.long) for net in LAYER])
@fewer(10)
@given(data=st.data())
def test_any_mix_of_jobs_gives_each_what_it_gets_alone(shared: EngineRuntime, net: str, data: st.DataObject) -> None:
    mix = data.draw(st.lists(jobs(net), min_size=2, max_size=5))

    async def alone_and_together() -> tuple[list[Any], list[Any]]:
        runtime = shared.bind(ignore)
        alone = [await runtime.sample(job) for job in mix]
        return alone, await asyncio.gather(*(runtime.sample(job) for job in mix))

    for alone, together in zip(*asyncio.run(alone_and_together()), strict=True):
        assert mixes.relative_error(together.latents, alone.latents) <= TOLERANCE


async def test_a_recipes_method_for_references_holds_where_a_conditioning_names_none(shared: EngineRuntime) -> None:
    plain = Recipe("backbone", "diffusion_models", "flux2_klein.safetensors")
    patched = plain.with_patch(ReferenceMethod("index_timestep_zero"))
    runtime = shared.bind(ignore)

    async def sampled(recipe: Recipe, **named: str) -> Any:
        conditioning = text(1, 5, reference_latents=[noise("reference", (1, 128, 4, 6))], **named)
        asked = mixes.request(
            backbone=recipe, shape=(1, 128, 4, 4), positive=conditioning, negative=text(2, 4), steps=2
        )
        return (await runtime.sample(asked)).latents

    by_recipe, by_none = await sampled(patched), await sampled(plain)
    assert mixes.relative_error(by_recipe, by_none) > 1e-3
    zero, index = {"reference_latents_method": "index_timestep_zero"}, {"reference_latents_method": "index"}
    assert mixes.relative_error(by_recipe, await sampled(plain, **zero)) <= TOLERANCE
    assert mixes.relative_error(by_none, await sampled(patched, **index)) <= TOLERANCE


async def test_jobs_of_several_sizes_and_texts_share_forwards(shared: EngineRuntime) -> None:
    recipe = Recipe("backbone", "diffusion_models", "zimage.safetensors")
    mix = [
        mixes.request(
            backbone=recipe, shape=(1, 16, *size), positive=text(1, length), negative=text(2, 4), cfg=1.0, steps=3
        )
        for size, length in (((6, 8), 3), ((8, 6), 40), ((7, 7), 5))
    ]
    runtime, before = shared.bind(ignore), shared.counters.forwards
    await asyncio.gather(*(runtime.sample(job) for job in mix))
    assert shared.counters.forwards - before < 3 * len(mix)
