"""`MiniMaxH3FunControlNetApply`: what it asks of a sampler, and what it refuses."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from serve_app.errors import NodeError
from serve_app.nodes.model.controls import minimax_h3_fun_control_net_apply
from serve_app.recipe.controls import ModelControl
from serve_app.recipe.recipe import Recipe

MODEL, PATCH = Recipe("backbone", "diffusion_models", "h3"), Recipe("model_patch", "model_patches", "fun")
VAE = Recipe("vae", "vae", "h3")
VIDEO, MASK = torch.rand(5, 8, 8, 4), torch.ones(1, 8, 8)


@dataclass(frozen=True)
class Family:
    """What a runtime says of the model and of the VAE."""

    title: str = "MiniMax H3"
    latent_channels: int = 24
    factor: int = 16
    frames: int = 4

    async def family(self, recipe: Any) -> Family:
        return self


def applied(says: Family | None = None, **inputs: Any) -> Recipe:
    runtime: Any = says or Family()
    return asyncio.run(minimax_h3_fun_control_net_apply(MODEL, PATCH, VAE, runtime, **inputs))


def test_a_control_follows_a_video_in_a_part_of_the_sampling() -> None:
    made = applied(strength=0.5, start_percent=0.25, end_percent=0.75, control_video=VIDEO, source_video=VIDEO)
    [control] = made.all(ModelControl)
    assert control.image is not None
    assert control.image.shape == (5, 8, 8, 3)
    assert (control.recipe, control.vae) == (PATCH, VAE)
    assert (control.strength, control.start_percent, control.end_percent) == (0.5, 0.25, 0.75)
    assert control.inpaint_image is None, "a source is read where there is a mask alone"


def test_a_mask_alone_paints_a_video_anew() -> None:
    [control] = applied(mask=MASK, source_video=VIDEO).all(ModelControl)
    assert control.image is None
    assert control.mask is MASK
    assert control.inpaint_image is not None
    assert control.inpaint_image.shape == (5, 8, 8, 3)


@pytest.mark.parametrize("inputs", [{"strength": 0.0, "control_video": VIDEO}, {}, {"source_video": VIDEO}])
def test_a_control_of_no_strength_or_of_nothing_leaves_the_model_as_it_is(inputs: dict[str, Any]) -> None:
    assert applied(**inputs) is MODEL


def test_another_model_and_another_vae_are_refused_before_they_are_loaded() -> None:
    with pytest.raises(NodeError, match=r"the model is one of Wan; this ControlNet is for MiniMax H3"):
        applied(Family("Wan"), control_video=VIDEO)
    with pytest.raises(NodeError, match="makes 16 channels with cells of 8 pixels; this node takes one of videos"):
        applied(Family(latent_channels=16, factor=8), control_video=VIDEO)
