"""Loaders of models' parts, which are recipes."""

from __future__ import annotations

from serve_app.nodes.loaders.models import ltxav_text_encoder_loader
from serve_app.recipe.recipe import encoders
from serve_app.recipe.text import ProjectedBy


def test_the_states_of_ltxs_text_encoder_are_projected_by_a_checkpoint() -> None:
    made = ltxav_text_encoder_loader("gemma.safetensors", "ltx.safetensors", "default")
    assert made == encoders("ltxv", "gemma.safetensors").with_patch(ProjectedBy("ltx.safetensors"))
