"""Texts and images of several jobs through one forward of an encoder: as each alone, whatever is mixed."""

from __future__ import annotations

import asyncio

import pytest
import torch

from serve_app.engine.runtime import EngineRuntime
from serve_app.errors import NodeError
from serve_app.models.weights.weights import Weights
from serve_app.recipe.text import ClipSkip
from serve_app.values import Texts
from tests.unit.engine import mixes
from tests.unit.engine.test_engine import arrived, held
from tests.unit.engine.test_strict import BACKBONE, CLIP, VAE_RECIPE, catalog, ignore
from tests.unit.models.sample import cpu_weights

__all__ = ["catalog"]

TEXTS = ["a fox", "a (red:1.3) hen", "", "cat " * 90, "a fox, [[a hen]]"]


class Counting(Weights):
    """Counts how often a model is asked for, which is once a forward."""

    asked = 0

    def clip(self, recipe, hold=None):
        self.asked += 1
        return super().clip(recipe, hold)

    def vae(self, recipe, hold=None):
        self.asked += 1
        return super().vae(recipe, hold)


@pytest.fixture
def shared(engine, catalog):
    return EngineRuntime(engine, cpu_weights(catalog, kind=Counting))


async def at_once(engine, shared, *work):
    """Do work that all waits before the first of it is done; return its results and how often models were asked for."""
    go, before = held(engine), shared.weights.asked
    doing = [asyncio.create_task(one) for one in work]
    await arrived(engine, len(work))
    go.set()
    made = await asyncio.gather(*doing, return_exceptions=True)
    return made, shared.weights.asked - before


def differ(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


async def test_texts_of_several_jobs_are_one_forward_and_each_is_as_alone(engine, shared):
    strict, usual = shared.bind(ignore, strict=True), shared.bind(ignore)
    alone = [await strict.encode_text(CLIP, text) for text in TEXTS]
    made, asked = await at_once(engine, shared, *(usual.encode_text(CLIP, text) for text in TEXTS))
    assert asked == 1
    for [(cond, options)], [(lone, known)] in zip(made, alone, strict=True):
        assert cond.shape == lone.shape
        assert differ(cond, lone) <= 1e-5
        assert differ(options["pooled_output"], known["pooled_output"]) <= 1e-5


async def test_texts_that_stop_at_another_layer_are_another_forward(engine, shared):
    usual = shared.bind(ignore)
    recipes = [CLIP, CLIP.with_patch(ClipSkip(-2)), CLIP]
    _, asked = await at_once(engine, shared, *(usual.encode_text(recipe, "a fox") for recipe in recipes))
    assert asked == 2


async def test_a_text_that_cannot_be_encoded_fails_its_own_job_only(engine, shared):
    usual = shared.bind(ignore)
    texts = ["a fox", Texts(g="a", l="b"), "a hen"]
    made, _ = await at_once(engine, shared, *(usual.encode_text(CLIP, text) for text in texts))
    assert [isinstance(one, NodeError) for one in made] == [False, True, False]


async def test_latents_and_images_of_one_shape_are_one_forward_and_each_is_as_alone(engine, shared):
    strict, usual = shared.bind(ignore, strict=True), shared.bind(ignore)
    batches = [torch.randn(count, 4, 4, width) for count, width in ((1, 4), (2, 4), (1, 6), (3, 4))]
    alone = [await strict.decode(VAE_RECIPE, latents) for latents in batches]
    images, asked = await at_once(engine, shared, *(usual.decode(VAE_RECIPE, latents) for latents in batches))
    assert asked == 2
    assert max(differ(ours, theirs) for ours, theirs in zip(images, alone, strict=True)) <= 1e-5
    again = [await strict.encode(VAE_RECIPE, one) for one in images]
    latents, asked = await at_once(engine, shared, *(usual.encode(VAE_RECIPE, one) for one in images))
    assert asked == 2
    assert max(differ(ours, theirs) for ours, theirs in zip(latents, again, strict=True)) <= 1e-5


async def test_no_more_pixels_are_decoded_at_once_than_a_slice_has(engine, shared):
    usual = shared.bind(ignore)
    batches = [torch.zeros(1, 4, 64, 96) for _ in range(4)]
    images, asked = await at_once(engine, shared, *(usual.decode(VAE_RECIPE, latents) for latents in batches))
    assert asked == 2
    # Whoever keeps one image keeps no other with it.
    assert all(image.untyped_storage().nbytes() == image.nbytes for image in images)


async def test_strict_work_is_done_one_by_one(engine, shared):
    strict = shared.bind(ignore, strict=True)
    _, asked = await at_once(engine, shared, *(strict.encode_text(CLIP, text) for text in TEXTS))
    assert asked == len(TEXTS)


async def test_in_a_mix_of_encoding_sampling_and_decoding_each_job_gets_what_it_gets_alone(shared):
    async def picture(runtime, seed):
        text = await runtime.encode_text(CLIP, TEXTS[seed % len(TEXTS)])
        shape = (1 + seed % 2, 4, 4, 4 + 2 * (seed % 3))
        latents = torch.zeros(shape)
        request = mixes.request(
            backbone=BACKBONE, positive=text, negative=text, seed=seed, steps=2 + seed % 4, latents=latents
        )
        sampled = await runtime.sample(request)
        return await runtime.decode(VAE_RECIPE, sampled.latents)

    usual, strict = shared.bind(ignore), shared.bind(ignore, strict=True)
    together = await asyncio.gather(*(picture(usual, seed) for seed in range(9)))
    alone = [await picture(strict, seed) for seed in range(9)]
    assert max(differ(ours, theirs) for ours, theirs in zip(together, alone, strict=True)) <= 1e-5
