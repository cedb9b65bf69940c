"""Autoencoders of videos as the engine runs them: whose images are whose, and what is worked on at once."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import serve_app.models.vae as of_vae
from serve_app.engine.autoencoding import Autoencoding
from serve_app.engine.engine import Engine
from serve_app.engine.runtime import EngineRuntime
from serve_app.errors import DeviceMemoryError
from serve_app.models.families import Wan22Vae, WanVae
from serve_app.models.families.family import VaeFamily
from serve_app.models.vae import Vae
from serve_app.recipe.recipe import Recipe
from serve_app.store.models.catalog import Catalog
from tests.unit.engine.allocator import Allocator, IdleWeights
from tests.unit.engine.test_strict import ignore
from tests.unit.engine.test_together import Counting, at_once
from tests.unit.models.sample import cpu_weights, random_tensors

FAMILIES: dict[str, VaeFamily] = {"wan": WanVae(4, 16, 3), "wan22": Wan22Vae(8, 8)}
IMAGES = torch.rand(9, 32, 16, 3, generator=torch.Generator().manual_seed(1))
LATENTS = {
    name: torch.randn(2, known.latent_channels, 3, 2, 1, generator=torch.Generator().manual_seed(2))
    for name, known in FAMILIES.items()
}


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    root: Path = tmp_path_factory.mktemp("models")
    (root / "vae").mkdir()
    for name, known in FAMILIES.items():
        save_file(random_tensors(known, torch.float32), root / "vae" / f"{name}.safetensors")
    return Catalog(root)


@pytest.fixture
def vae(catalog: Catalog, request: pytest.FixtureRequest) -> Vae:
    return cpu_weights(catalog, dtype="fp32").vae(recipe(request.param))


def recipe(name: str) -> Recipe:
    return Recipe("vae", "vae", f"{name}.safetensors")


def _noted(heard: list[tuple[str, int, int]], name: str, done: int, of: int) -> None:
    heard.append((name, done, of))


async def test_images_that_jobs_encode_at_the_same_time_are_of_no_common_video(
    engine: Engine, catalog: Catalog
) -> None:
    shared = EngineRuntime(engine, cpu_weights(catalog, kind=Counting))
    strict, usual = shared.bind(ignore, strict=True), shared.bind(ignore)
    batches = torch.split(IMAGES[:3], 1)
    alone = [await strict.encode(recipe("wan"), batch) for batch in batches]
    made, asked = await at_once(engine, shared, *(usual.encode(recipe("wan"), batch) for batch in batches))
    # None had to be done again alone.
    assert asked == 1
    assert [one.shape[2] for one in made] == [1, 1, 1]
    for ours, theirs in zip(made, alone, strict=True):
        torch.testing.assert_close(ours, theirs)


async def test_videos_of_several_jobs_are_worked_on_in_turn_and_say_how_far_they_are(
    engine: Engine, catalog: Catalog
) -> None:
    shared = EngineRuntime(engine, cpu_weights(catalog, dtype="fp32", kind=Counting))
    heard: list[tuple[str, int, int]] = []
    bound = [shared.bind(partial(_noted, heard, name)) for name in "ab"]
    asked = zip(bound, torch.split(LATENTS["wan"], 1), strict=True)
    made, _ = await at_once(engine, shared, *(one.decode(recipe("wan"), latents) for one, latents in asked))
    assert sorted(heard) == [(name, done, 3) for name in "ab" for done in (1, 2, 3)]
    assert heard != sorted(heard)
    assert heard != sorted(heard, key=lambda one: ("ba".index(one[0]), one[1]))
    alone = cpu_weights(catalog, dtype="fp32").vae(recipe("wan")).decode(LATENTS["wan"])
    for ours, theirs in zip(made, torch.split(alone, 1), strict=True):
        assert ours.shape == (1, 9, 16, 8, 3)
        torch.testing.assert_close(ours, theirs)


async def test_a_video_that_nobody_waits_for_any_more_is_left_where_it_is(engine: Engine, catalog: Catalog) -> None:
    shared = EngineRuntime(engine, cpu_weights(catalog, dtype="fp32"))
    heard: list[int] = []

    def noted(done: int, of: int) -> None:
        heard.append(done)
        job.cancel()

    runtime = shared.bind(noted)
    job = asyncio.ensure_future(runtime.encode(recipe("wan"), IMAGES))
    with pytest.raises(asyncio.CancelledError):
        await job
    await shared.bind(ignore).encode(recipe("wan"), IMAGES[:1])
    assert heard == [1]


@pytest.mark.parametrize("vae", FAMILIES, indirect=True)
def test_of_a_video_only_what_a_latent_stands_for_is_on_the_device(vae: Vae, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(of_vae, "to_device", lambda batch, device: seen.append(batch.shape[2]) or batch)
    vae.encode(IMAGES)
    vae.decode(next(known for name, known in LATENTS.items() if FAMILIES[name] == vae.family)[:1])
    assert seen == [1, 4, 4, 1, 1, 1]


@pytest.mark.parametrize("vae", FAMILIES, indirect=True)
def test_an_image_alone_leaves_nothing_for_later_ones(vae: Vae, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    for half in (vae.network.encoder, vae.network.decoder):
        forward = half.forward
        monkeypatch.setattr(
            half, "forward", lambda x, forward=forward, **given: told.append(given["feat_cache"]) or forward(x, **given)
        )
    one = vae.encode(IMAGES[:1])
    image = vae.decode(one)
    assert told == [None, None]
    torch.testing.assert_close(one, vae.encode(IMAGES)[:, :, :1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(image, vae.decode(torch.cat([one, one], 2))[:, :1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("vae", ["wan"], indirect=True)
def test_a_video_of_which_no_moment_fits_is_given_up_at_once_the_next_time(
    vae: Vae, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def too_much(batch: Tensor, device: torch.device) -> Tensor:
        asked.append(batch.shape[2])
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(of_vae, "to_device", too_much)
    autoencoding = Autoencoding(IdleWeights(Allocator(1), []))
    for count in (2, 3):
        with pytest.raises(DeviceMemoryError, match="512 pixels do not fit the device's memory as one"):
            list(autoencoding.by_latent_frames(recipe("wan"), vae, "decode", LATENTS["wan"][:1, :, :count]))
    assert asked == [1]
    assert autoencoding.failures == 1


def test_the_file_of_each_is_recognized_by_its_tensors(catalog: Catalog) -> None:
    weights = cpu_weights(catalog)
    assert [weights.family(recipe(name)) for name in FAMILIES] == list(FAMILIES.values())


@pytest.mark.parametrize("vae", FAMILIES, indirect=True)
def test_videos_of_a_batch_are_each_decoded_as_alone(vae: Vae) -> None:
    latents = next(known for name, known in LATENTS.items() if FAMILIES[name] == vae.family)
    together: Tensor = vae.decode(latents)
    assert together.shape[:2] == (2, 9)
    torch.testing.assert_close(together[1:], vae.decode(latents[1:]), rtol=1e-3, atol=1e-4)
