"""Which cells a run keeps, and from which level on it lets them go."""

from __future__ import annotations

import pytest
import torch

from serve_app.recipe.layers import DifferentialDiffusion
from serve_app.recipe.pack_functions import PackFunctions
from serve_app.sampling.latents.inpaint import Inpainting, changing_mask, differential, latent_mask
from serve_app.sampling.lazy_sum import value
from serve_app.sampling.samplers.evaluation import Evaluation
from serve_app.sampling.schedules.levels import TableLevels
from serve_app.sampling.schedules.sigmas import normal

LEVELS = TableLevels()
SIGMAS = normal(LEVELS, 10)
LATENTS, NOISE = torch.full((1, 4, 2, 2), 3.0), torch.full((1, 4, 2, 2), 2.0)
MASK = torch.tensor([[[[0.0, 0.25], [0.75, 1.0]]]])


def test_what_is_kept_is_seen_at_the_samplers_level_and_answered_clean():
    inpainting = Inpainting(MASK, LATENTS, NOISE, LEVELS)
    seen = inpainting.hold(Evaluation(torch.full_like(LATENTS, 11.0), 4.0, 0)).latents
    assert seen[0, 0].tolist() == [[11.0, 11.0], [11.0, 11.0]]
    seen = inpainting.hold(Evaluation(torch.zeros_like(LATENTS), 4.0, 0)).latents
    assert seen[0, 0].tolist() == [[11.0, 8.25], [2.75, 0.0]]
    assert value(inpainting.restore(torch.zeros_like(LATENTS), 4.0))[0, 0].tolist() == [[3.0, 2.25], [0.75, 0.0]]


@pytest.mark.parametrize(("step", "sampled"), [(0, [0, 0, 0, 1]), (3, [0, 0, 1, 1]), (7, [0, 1, 1, 1])])
def test_differential_diffusion_samples_a_cell_once_its_mask_reaches_what_is_left_of_the_run(step, sampled):
    mask = differential(DifferentialDiffusion(1.0), LEVELS, SIGMAS)(MASK, float(SIGMAS[step]))
    assert mask.flatten().tolist() == sampled


def test_a_strength_of_half_lies_between_the_run_mask_and_the_levels():
    mask = differential(DifferentialDiffusion(0.5), LEVELS, SIGMAS)(MASK, float(SIGMAS[3]))
    assert mask.flatten().tolist() == [0.0, 0.125, 0.875, 1.0]


def test_a_mask_that_changes_is_made_once_a_level_in_which_latents_are_held_and_restored():
    made = []

    def mask(of_run, sigma, sigmas, levels):
        made.append(sigma)
        return (of_run > 0.5).float()

    at = changing_mask(MASK, [DifferentialDiffusion(1.0), PackFunctions(mask=mask)], LEVELS, SIGMAS)
    inpainting = Inpainting(MASK, LATENTS, NOISE, LEVELS, at)
    for sigma in (4.0, 2.0, 4.0):
        inpainting.hold(Evaluation(LATENTS, sigma, 0))
        restored = value(inpainting.restore(torch.zeros_like(LATENTS), sigma))
        assert restored[0, 0].tolist() == [[3.0, 3.0], [0.0, 0.0]]
    assert made == [4.0, 2.0, 4.0]


def test_a_mask_of_pixels_is_scaled_to_cells_and_shared_by_the_batch():
    pixels = torch.zeros(16, 16)
    pixels[:, 8:] = 1
    mask = latent_mask(pixels, torch.zeros(3, 4, 2, 2))
    assert mask.shape == (3, 1, 2, 2)
    assert torch.equal(mask[2, 0], torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
