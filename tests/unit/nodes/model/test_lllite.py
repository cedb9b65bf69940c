"""`AnimaLLLiteApply`: what it asks of a sampler."""

from __future__ import annotations

import torch

from serve_app.nodes.model.controls import anima_lllite_apply
from serve_app.recipe.controls import ModelControl
from serve_app.recipe.recipe import Recipe

MODEL, PATCH = Recipe("backbone", "diffusion_models", "anima"), Recipe("model_patch", "model_patches", "lllite")


def test_an_lllite_follows_an_image_without_its_transparency_in_a_part_of_the_sampling() -> None:
    applied = anima_lllite_apply(MODEL, PATCH, torch.rand(1, 8, 8, 4), 0.5, 0.25, 0.75, torch.ones(1, 8, 8))
    [control] = applied.all(ModelControl)
    assert control.image is not None
    assert control.image.shape == (1, 8, 8, 3)
    assert control.mask is not None
    assert (control.strength, control.start_percent, control.end_percent) == (0.5, 0.25, 0.75)


def test_an_lllite_of_no_strength_leaves_the_model_as_it_is() -> None:
    assert anima_lllite_apply(MODEL, PATCH, torch.rand(1, 8, 8, 3), 0.0) is MODEL
