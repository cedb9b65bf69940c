"""What patches make of guidance, where it can be said without ComfyUI's figures."""

from __future__ import annotations

import pytest
import torch

from serve_app.recipe.guidance import (
    AdaptiveProjection,
    CfgNorm,
    CfgZeroStar,
    EpsilonScaling,
    FrequencyScaling,
    RenormCfg,
    RescaleCfg,
    TangentialDamping,
)
from serve_app.recipe.layers import FreeU
from serve_app.sampling.guidance.guidance_patches import GuidancePatches, GuidedBy
from serve_app.sampling.schedules.levels import FlowLevels

X, COND, UNCOND = torch.randn(3, 2, 4, 6, 6, generator=torch.Generator().manual_seed(0)).unbind()


def shaped(*patches, scale=4.0, cond=COND, uncond=UNCOND, sigma=3.0, skipped=False):
    shaping = GuidancePatches(patches)
    return shaping.combined(shaping.before(GuidedBy(X, sigma, scale, cond, uncond, skipped)))


@pytest.mark.parametrize(
    "patch",
    [
        RescaleCfg(0.0),
        AdaptiveProjection(1.0, 0.0, 0.0),
        FrequencyScaling(1.0, 1.0, 2),
        EpsilonScaling(1.0),
        FreeU(1, 1, 1, 1),
    ],
    ids=lambda patch: type(patch).__name__,
)
def test_a_patch_set_to_do_nothing_leaves_plain_guidance(patch):
    if isinstance(patch, AdaptiveProjection):
        # Its guidance comes on top of the positive, so the scale counts from there.
        torch.testing.assert_close(shaped(patch), UNCOND + (COND - UNCOND) * 5, rtol=1e-4, atol=1e-4)
    else:
        torch.testing.assert_close(shaped(patch), UNCOND + (COND - UNCOND) * 4, rtol=1e-4, atol=1e-4)


def test_low_frequencies_of_guidance_are_scaled_apart_from_high_ones():
    low = torch.ones_like(COND)
    high = low.clone()
    high[..., 1::2] *= -1
    guided = shaped(FrequencyScaling(2.0, 3.0, 1), scale=1.0, cond=UNCOND + low + high)
    torch.testing.assert_close(guided, UNCOND + 2 * low + 3 * high, rtol=1e-4, atol=1e-4)


def test_rescaling_gives_the_guided_v_the_positives_deviation():
    denoised = shaped(RescaleCfg(1.0))
    v, positive = (X / 10 - d for d in (denoised, COND))
    torch.testing.assert_close(v.std(dim=(1, 2, 3)), positive.std(dim=(1, 2, 3)))


def test_on_a_flow_rescaling_gives_the_guided_image_the_positives_deviation():
    shaping = GuidancePatches([RescaleCfg(1.0)], FlowLevels(3.0, 1.0))
    x, cond, uncond = torch.randn(3, 2, 4, 3, 6, 6, generator=torch.Generator().manual_seed(0)).unbind()
    denoised = shaping.combined(GuidedBy(x, 0.5, 4.0, cond, uncond))
    torch.testing.assert_close(denoised.flatten(1).std(dim=1), cond.flatten(1).std(dim=1))
    plain = (uncond + (cond - uncond) * 4).flatten(1)
    torch.testing.assert_close(
        denoised.flatten(1) / denoised.flatten(1).norm(dim=1, keepdim=True), plain / plain.norm(dim=1, keepdim=True)
    )


def test_renorming_limits_a_whole_images_length_and_guides_below_a_level_alone():
    lengths, limit = (d.flatten(1).norm(dim=1) for d in (shaped(RenormCfg(100.0, 1.5)), COND))
    torch.testing.assert_close(lengths, limit * 1.5)
    torch.testing.assert_close(shaped(RenormCfg(100.0, 0.0)), shaped())
    assert torch.equal(shaped(RenormCfg(3.0, 1.0), sigma=3.0), COND)


def test_zero_star_scales_the_negative_by_how_far_its_step_goes_along_the_positives():
    step = X - COND
    denoised = shaped(CfgZeroStar(), uncond=X - step * 0.5)
    # The negative's step is half the positive's, so alpha is 2.
    torch.testing.assert_close(X - denoised, step * 4 + (1 - 4) * (step * 0.5 + (1 - 2) * (X - step * 0.5)))


def test_norm_keeps_every_cell_as_short_as_the_positive():
    lengths = shaped(CfgNorm(1.0)).norm(dim=1)
    assert bool((lengths <= COND.norm(dim=1) * (1 + 1e-5)).all())


def test_tangential_damping_leaves_steps_along_one_direction_alone_and_skips_what_was_not_asked_for():
    torch.testing.assert_close(
        shaped(TangentialDamping(), uncond=X - (X - COND) * 0.4),
        shaped(uncond=X - (X - COND) * 0.4),
        rtol=1e-4,
        atol=1e-4,
    )
    torch.testing.assert_close(shaped(TangentialDamping(), scale=1.0, uncond=COND * 0, skipped=True), COND)


def test_momentum_remembers_until_the_level_rises():
    shaping = GuidancePatches([AdaptiveProjection(1.0, 0.0, 0.5)])
    first, second, again = (shaping.before(GuidedBy(X, s, 4.0, COND, UNCOND)).cond for s in (9.0, 3.0, 9.0))
    torch.testing.assert_close(second - first, (COND - UNCOND) * 0.5, rtol=1e-4, atol=1e-4)
    assert torch.equal(first, again)
