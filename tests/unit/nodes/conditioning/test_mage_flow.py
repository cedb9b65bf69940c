"""The node of Mage-Flow: values in, values out."""

from __future__ import annotations

import asyncio
from typing import Any

import torch
from torch import Tensor

from serve_app.nodes.conditioning.mage_flow import text_encode_mage_flow_edit
from serve_app.recipe.recipe import Recipe
from serve_app.values import Conditioning, IllustratedText

CLIP = Recipe("clip", "text_encoders", "qwen3vl_4b.safetensors")
VAE = Recipe("vae", "vae", "mage_flow_vae.safetensors")


class Runtime:
    """A runtime whose encoder says what it is given, and whose autoencoder keeps some pixels."""

    async def encode_text(self, clip: Recipe, text: IllustratedText) -> Conditioning:
        return [(torch.zeros(1, 2, 3), {"text": text.text, "seen": [tuple(one.shape) for one in text.images]})]

    async def encode(self, vae: Recipe, images: Tensor) -> Tensor:
        return images[:, ::16, ::16].movedim(-1, 1)


def asked(images: dict[str, Tensor] | None, vae: Recipe | None, *size: int) -> Any:
    runtime: Any = Runtime()
    return asyncio.run(text_encode_mage_flow_edit(CLIP, "red", "", runtime, vae, images, *size))


def test_without_images_both_texts_are_encoded_and_the_latents_are_empty() -> None:
    [(_, said)], [(_, denied)], latent = asked(None, None, 64, 33)
    assert (said["text"], denied["text"], said["seen"]) == ("red", " ", [])
    assert latent["samples"].shape == (1, 128, 2, 4)
    assert not latent["samples"].any()


def test_references_are_made_of_the_images_size_and_seen_smaller() -> None:
    images = {"image_2": torch.rand(1, 20, 30, 3), "image_1": torch.rand(1, 48, 800, 4)}
    [(_, said)], _, latent = asked(images, VAE)
    assert latent["samples"].shape == (1, 128, 3, 50)
    assert said["seen"] == [(1, 23, 384, 4), (1, 20, 30, 3)]
    assert [tuple(one.shape) for one in said["reference_latents"]] == [(1, 3, 3, 50)] * 2
