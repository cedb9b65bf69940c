"""Image encoders and unCLIP through the nodes over an engine, and in any mix of jobs: each gets what it gets alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from serve_app.engine.engine import Engine
from serve_app.engine.node_runtime import IMAGES_TOGETHER
from serve_app.engine.runtime import EngineRuntime
from serve_app.engine.timeline import HostTimeline
from serve_app.errors import ModelFileError, NodeError
from serve_app.models.families import AutoencoderKL, ClipText, ClipVision, Unclip
from serve_app.nodes.conditioning.encode import clip_text_encode
from serve_app.nodes.conditioning.vision import (
    clip_vision_encode,
    clip_vision_loader,
    unclip_checkpoint_loader,
    unclip_conditioning,
)
from serve_app.nodes.latent.latents import vae_decode
from serve_app.nodes.sampling.ksampler import ksampler
from serve_app.sampling.request import SamplingRequest
from serve_app.store.models.catalog import Catalog
from serve_app.values import ClipVisionOutput, Conditioning
from tests.examples import fewer
from tests.parity.dit_cases import noise, weights
from tests.unit.engine import mixes
from tests.unit.models.sample import SAMPLE, cpu_weights, random_tensors, write_sample_checkpoint

NAME = "unclip.safetensors"
WIDTH = 768
BACKBONE = Unclip((32, 64, 128), (1, 1, 1), (0, 1, 1), 1, context_dim=64, linear=True, vector_dim=2 * WIDTH)
ENCODER = ClipVision(layers=23, width=32, hidden_width=48, side=2, patch=8, projection=WIDTH)
PARTS = unclip_checkpoint_loader(NAME)
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineRuntime]:
    root: Path = tmp_path_factory.mktemp("models")
    for folder in ("checkpoints", "clip_vision"):
        (root / folder).mkdir()
    parts = [BACKBONE, *(part for part in SAMPLE if isinstance(part, AutoencoderKL | ClipText))]
    tensors = {name: tensor for part in parts for name, tensor in random_tensors(part, torch.float32).items()}
    encoder = {
        name if name.startswith("visual_projection") else f"vision_model.{name}": tuple(tensor.shape)
        for name, tensor in ENCODER.empty().state_dict().items()
    }
    drawn = weights(encoder)
    save_file(tensors | {f"embedder.model.visual.{k}": v for k, v in drawn.items()}, root / "checkpoints" / NAME)
    save_file(drawn, root / "clip_vision" / "vit.safetensors")
    write_sample_checkpoint(root / "checkpoints" / "plain.safetensors")
    engine = Engine(mixes.MAX_CELLS, HostTimeline())
    yield EngineRuntime(engine, cpu_weights(Catalog(root)))
    engine.close()


def ignore(done: int, steps: int) -> None:
    pass


def images(seed: int, count: int = 1, side: int = 20) -> torch.Tensor:
    return torch.rand(count, side, 30, 3, generator=torch.Generator().manual_seed(seed))


async def test_a_checkpoint_of_unclip_draws_what_an_image_conditions_it_on(shared: EngineRuntime) -> None:
    runtime: Any = shared.bind(ignore)
    model, clip, vae, encoder = PARTS
    positive = await clip_text_encode(clip, "a fox", runtime)
    negative = await clip_text_encode(clip, "", runtime)

    async def drawn(seed: int | None, augmentation: float = 0.0) -> torch.Tensor:
        told = positive
        if seed is not None:
            seen = await clip_vision_encode(encoder, images(seed), "center", runtime)
            told = unclip_conditioning(positive, seen, 1.0, augmentation)
        latent = {"samples": torch.zeros(1, 4, 8, 8)}
        sampled = await ksampler(model, 3, 4, 4.0, "euler", "normal", told, negative, latent, runtime)
        picture = await vae_decode(vae, sampled, runtime)
        assert picture.shape == (1, 64, 64, 3)
        latents: torch.Tensor = sampled["samples"]
        assert latents.isfinite().all()
        return latents

    one, again, another, noised, none = [await drawn(*asked) for asked in ((1,), (1,), (2,), (1, 0.5), (None,))]
    assert torch.equal(one, again)
    for other in (another, noised, none):
        assert mixes.relative_error(other, one) > 1e-3


async def test_an_encoder_of_its_own_sees_as_the_checkpoints_does(shared: EngineRuntime) -> None:
    runtime: Any = shared.bind(ignore)
    encoder = clip_vision_loader("vit.safetensors")
    alone = await clip_vision_encode(encoder, images(1), "none", runtime)
    within = await clip_vision_encode(PARTS[3], images(1), "none", runtime)
    assert torch.equal(alone.image_embeds, within.image_embeds)
    assert alone.image_embeds.shape == (1, WIDTH)


async def test_images_of_many_jobs_and_of_several_sizes_are_seen_as_alone(shared: EngineRuntime) -> None:
    runtime, encoder = shared.bind(ignore), PARTS[3]
    batches = [images(1), images(2, count=IMAGES_TOGETHER + 3), images(3, side=40), images(4, count=2)]
    alone = [await runtime.see(encoder, batch, crop=True) for batch in batches]
    together = await asyncio.gather(*(runtime.see(encoder, batch, crop=True) for batch in batches))
    for batch, one, many in zip(batches, alone, together, strict=True):
        assert many.last_hidden_state.shape == (len(batch), 5, 32)
        for part in ("last_hidden_state", "penultimate_hidden_states", "image_embeds"):
            assert mixes.relative_error(getattr(many, part), getattr(one, part)) <= TOLERANCE


async def test_one_bad_image_fails_its_own_job_alone(shared: EngineRuntime) -> None:
    runtime, encoder = shared.bind(ignore), PARTS[3]
    good, bad = images(1), torch.zeros(1, 1, 900, 3)
    seen, failed = await asyncio.gather(
        runtime.see(encoder, good, crop=True), runtime.see(encoder, bad, crop=True), return_exceptions=True
    )
    assert isinstance(failed, NodeError)
    assert isinstance(seen, ClipVisionOutput)


async def test_a_checkpoint_without_an_encoder_says_so(shared: EngineRuntime) -> None:
    *_, encoder = unclip_checkpoint_loader("plain.safetensors")
    with pytest.raises(ModelFileError, match=r"'plain\.safetensors' holds no image encoder of a known layout"):
        await shared.bind(ignore).see(encoder, images(1), crop=True)


def text(seed: int, length: int, **options: Any) -> Conditioning:
    return [(noise(f"text {seed}", (1, length, 64)), options)]


@st.composite
def jobs(draw: st.DrawFn) -> SamplingRequest:
    """Any job of unCLIP: no image, one or several, each of its own strength and noise; texts of any length."""
    options: dict[str, Any] = {}
    if count := draw(st.integers(0, 3)):
        options["unclip_conditioning"] = [
            {
                "clip_vision_output": ClipVisionOutput(*(noise(f"seen {draw(st.integers(0, 4))}", (1, WIDTH)),) * 3),
                "strength": draw(st.sampled_from([0.5, 1.0, -2.0])),
                "noise_augmentation": draw(st.sampled_from([0.0, 0.2, 1.0])),
            }
            for _ in range(count)
        ]
    return mixes.request(
        backbone=PARTS[0],
        shape=(draw(st.integers(1, 2)), 4, 8, 8),
        positive=text(draw(st.integers(1, 5)), draw(st.sampled_from([7, 77])), **options),
        negative=text(draw(st.integers(6, 9)), 7),
        cfg=draw(st.sampled_from([1.0, 3.0])),
        steps=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 12)),
    )


@fewer(5)
@given(mix=st.lists(jobs(), min_size=2, max_size=4))
def test_any_mix_of_jobs_gives_each_what_it_gets_alone(shared: EngineRuntime, mix: list[SamplingRequest]) -> None:
    async def alone_and_together() -> tuple[list[Any], list[Any]]:
        runtime = shared.bind(ignore)
        alone = [await runtime.sample(job) for job in mix]
        return alone, await asyncio.gather(*(runtime.sample(job) for job in mix))

    for alone, together in zip(*asyncio.run(alone_and_together()), strict=True):
        assert mixes.relative_error(together.latents, alone.latents) <= TOLERANCE
