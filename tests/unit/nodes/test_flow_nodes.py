"""The nodes of models that sample flows."""

from __future__ import annotations

from math import exp
from typing import Any

import pytest
import torch

from serve_app.errors import NodeError
from serve_app.nodes.registry import BUILTIN
from serve_app.recipe.guidance import RenormCfg
from serve_app.recipe.layers import ReferenceMethod
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.training import Flow, FluxFlow

MODEL = Recipe("backbone", "diffusion_models", "a.safetensors")
TEXT = [(torch.zeros(1, 7, 8), {"pooled_output": torch.zeros(1, 8)})]


def run(name: str, **inputs: Any) -> Any:
    """Return the first output of a node."""
    node = BUILTIN[name]
    return getattr(node(), node.FUNCTION)(**inputs)[0]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "inputs", "patch"),
    [
        ("ModelSamplingSD3", {"shift": 3.0}, Flow(3.0, 1000.0)),
        ("ModelSamplingAuraFlow", {"shift": 3.1}, Flow(3.1, 1.0)),
        ("FluxKVCache", {}, ReferenceMethod("index_timestep_zero")),
        ("RenormCFG", {"cfg_trunc": 0.5, "renorm_cfg": 1.0}, RenormCfg(0.5, 1.0)),
    ],
)
def test_a_training_or_a_patch_is_put_on_the_recipe(name, inputs, patch):
    assert run(name, model=MODEL, **inputs).patches == (patch,)


@pytest.mark.parametrize(("side", "mu"), [(256, 0.5), (1024, 1.15)])
def test_fluxs_shift_is_base_and_max_at_the_sizes_it_was_trained_on(side, mu):
    recipe = run("ModelSamplingFlux", model=MODEL, max_shift=1.15, base_shift=0.5, width=side, height=side)
    training = recipe.last(FluxFlow)
    assert training is not None
    assert training.mu == pytest.approx(mu)


def test_a_shift_that_leaves_no_levels_is_refused_where_it_is_asked_for():
    with pytest.raises(NodeError, match="shift 0 and multiplier 1000 of a flow must be above 0"):
        run("ModelSamplingSD3", model=MODEL, shift=0.0)


@pytest.mark.parametrize(
    ("name", "more", "shape", "factor"),
    [
        ("EmptyLatentImage", {}, (2, 4, 16, 8), 8),
        ("EmptySD3LatentImage", {}, (2, 16, 16, 8), 8),
        ("EmptyFlux2LatentImage", {}, (2, 128, 8, 4), None),
        ("EmptyHunyuanImageLatent", {}, (2, 64, 4, 2), None),
        ("EmptyQwenImageLayeredLatentImage", {"layers": 3}, (2, 16, 4, 16, 8), None),
    ],
)
def test_empty_latents_are_of_their_family_and_some_say_for_which_factor(name, more, shape, factor):
    latent = run(name, width=64, height=128, batch_size=2, **more)
    assert latent["samples"].shape == shape
    assert not latent["samples"].any()
    assert latent.get("downscale_ratio_spacial") == factor


def test_a_schedule_of_flux_2_begins_with_noise_and_is_shifted_the_more_the_larger_the_image():
    small, large, huge = (run("Flux2Scheduler", steps=20, width=side, height=side) for side in (512, 1024, 2048))
    for sigmas in (small, large, huge):
        assert sigmas.shape == (21,)
        assert (float(sigmas[0]), float(sigmas[-1])) == (1.0, 0.0)
    assert small[10] < large[10] < huge[10]


def test_a_schedule_of_flux_2_for_ten_steps_and_above_its_largest_size_is_as_published():
    # By hand: mu is b1 + a1·tokens at ten steps, and b2 + a2·tokens above 4300, at whatever number of steps.
    for steps, side, mu in [(10, 1024, 1.89833333 + 8.73809524e-05 * 4096), (4, 1072, 0.45666666 + 0.00016927 * 4489)]:
        middle = run("Flux2Scheduler", steps=steps, width=side, height=side)[steps // 2]
        assert float(middle) == pytest.approx(exp(mu) / (exp(mu) + 1))


def test_fluxs_guidance_is_kept_in_the_conditioning():
    told = run("FluxGuidance", conditioning=TEXT, guidance=2.5)
    assert told[0][1] == {**TEXT[0][1], "guidance": 2.5}
    assert run("FluxDisableGuidance", conditioning=told)[0][1]["guidance"] is None
    placed = run("FluxKontextMultiReferenceLatentMethod", conditioning=TEXT, reference_latents_method="uxo/uno")
    assert placed[0][1]["reference_latents_method"] == "uxo"
    assert "guidance" not in TEXT[0][1]


def test_reference_latents_gather_in_order():
    first, second = torch.zeros(1, 16, 2, 2), torch.ones(1, 16, 4, 4)
    once = run("ReferenceLatent", conditioning=TEXT, latent={"samples": first})
    twice = run("ReferenceLatent", conditioning=once, latent={"samples": second})
    assert twice[0][1]["reference_latents"] == [first, second]
    assert once[0][1]["reference_latents"] == [first]
    assert run("ReferenceLatent", conditioning=TEXT) is TEXT


@pytest.mark.parametrize(
    ("height", "width", "scaled"), [(64, 64, (1024, 1024)), (30, 70, (672, 1568)), (90, 80, (1104, 944))]
)
def test_an_image_for_kontext_gets_the_size_of_the_nearest_aspect(height, width, scaled):
    assert run("FluxKontextImageScale", image=torch.rand(1, height, width, 3)).shape == (1, *scaled, 3)


def test_latents_in_time_are_grouped_into_batches_as_those_of_images_are():
    given = [{"samples": torch.full((count, 16, 2, 4, 6), float(count))} for count in (1, 2)]
    first, second = run("RebatchLatents", latents=given, batch_size=[2])
    assert first["samples"].shape == (2, 16, 2, 4, 6)
    assert [float(latent.mean()) for latent in (*first["samples"], *second["samples"])] == [1.0, 2.0, 2.0]
