"""The nodes of Chroma1-Radiance: values in, values out."""

from __future__ import annotations

import pytest

from serve_app.errors import NodeError
from serve_app.nodes.model.chroma_radiance import chroma_radiance_options, empty_chroma_radiance_latent_image
from serve_app.recipe.recipe import Recipe

MODEL = Recipe("backbone", "diffusion_models", "chroma-radiance-x0.safetensors")


def test_empty_latents_are_pixels() -> None:
    samples = empty_chroma_radiance_latent_image(64, 32, 2)["samples"]
    assert samples.shape == (2, 3, 32, 64)
    assert not samples.any()


def test_how_many_patches_are_computed_at_once_leaves_a_model_as_it_is() -> None:
    assert chroma_radiance_options(MODEL, True, 1.0, 0.0, 32, False) is MODEL


def test_text_tokens_in_order_are_refused_with_the_reason() -> None:
    with pytest.raises(NodeError, match="a file whose text tokens are in order has a tensor '__sequential__'"):
        chroma_radiance_options(MODEL, True, 1.0, 0.0, -1, True)
