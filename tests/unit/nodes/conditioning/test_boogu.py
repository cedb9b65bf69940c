"""The node of Boogu-Image's edits: values in, values out."""

from __future__ import annotations

import asyncio
from typing import Any

import torch
from torch import Tensor

from serve_app.nodes.conditioning.boogu import text_encode_boogu_edit
from serve_app.recipe.recipe import Recipe
from serve_app.values import IllustratedText

CLIP = Recipe("clip", "text_encoders", "qwen3vl_8b_fp8_scaled.safetensors")
VAE = Recipe("vae", "vae", "ae.safetensors")


class Runtime:
    """A runtime that keeps what it is asked to encode."""

    async def encode_text(self, clip: Recipe, text: Any) -> Any:
        return [(torch.zeros(1, 2, 3), {"said": text})]

    async def encode(self, vae: Recipe, image: Tensor) -> Tensor:
        return image


def asked(images: dict[str, Tensor]) -> Any:
    return asyncio.run(text_encode_boogu_edit(CLIP, "no hat", "", VAE, Runtime(), images))  # type: ignore[arg-type]


def test_the_prompt_alone_is_read_beside_the_images_and_both_have_them_as_references() -> None:
    [(_, said)], [(_, denied)] = asked({"image_10": torch.zeros(1, 64, 64, 3), "image_2": torch.ones(1, 100, 200, 4)})
    text: IllustratedText = said["said"]
    assert text.text == "no hat"
    assert [tuple(image.shape) for image in text.images] == [(1, 272, 543, 3), (1, 384, 384, 3)]
    assert denied["said"] == ""
    shapes = [tuple(image.shape) for image in said["reference_latents"]]
    assert shapes == [(1, 720, 1456, 3), (1, 1024, 1024, 3)]
    assert denied["reference_latents"] is said["reference_latents"]


def test_without_images_there_are_no_references() -> None:
    [(_, said)], [(_, denied)] = asked({})
    assert "reference_latents" not in said
    assert "reference_latents" not in denied
    assert said["said"].images == ()
