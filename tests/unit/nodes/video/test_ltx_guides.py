"""Guides of LTX-2's videos: where they stand, and which are refused. Their figures: tests/parity/test_ltx_workflows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serve_app.errors import NodeError
from serve_app.nodes.latent.upscalers import ltxv_latent_upsampler
from serve_app.nodes.video.ltx_guides import get_ic_lora_parameters, ltxv_add_guide, ltxv_crop_guides
from serve_app.recipe.recipe import Recipe
from serve_app.values import Conditioning

MODEL, VAE = Recipe("backbone", "checkpoints", "a"), Recipe("vae", "checkpoints", "a")
TEXT: Conditioning = [(torch.zeros(1, 1, 8), {})]


class Encodes:
    """A RUNTIME that knows an LTX-2 VAE, which makes latents of the right size, and a LoRA's metadata."""

    def __init__(self, factor: int, said: str) -> None:
        self.factor, self.said = factor, said

    async def family(self, recipe: Recipe) -> Any:
        return SimpleNamespace(latent_channels=128, factor=self.factor, frames=8)

    async def encode(self, vae: Recipe, images: torch.Tensor) -> torch.Tensor:
        count, height, width, _ = images.shape
        return torch.ones(1, 128, (count - 1) // 8 + 1, height // 32, width // 32)

    async def lora_metadata(self, name: str) -> dict[str, str]:
        return {"ss_reference_downscale_factor": self.said}


def encodes(factor: int = 32, said: str = "2.0") -> Any:
    """Return an `Encodes` that functions take for their RUNTIME."""
    return Encodes(factor, said)


def video(height: int = 2, width: int = 4) -> dict[str, Any]:
    return {"samples": torch.zeros(1, 128, 3, height, width)}


async def guided(latent: dict[str, Any], images: int, frame: int, runtime: Any = None, **more: Any) -> Any:
    image = torch.zeros(images, 64, 128, 3)
    return await ltxv_add_guide(TEXT, TEXT, VAE, latent, image, frame, 0.7, runtime or encodes(), **more)


async def test_cropping_takes_off_what_guides_added() -> None:
    positive, negative, latent = await guided(video(), 1, -1)
    image = torch.zeros(9, 64, 128, 3)
    positive, negative, latent = await ltxv_add_guide(positive, negative, VAE, latent, image, 0, 1.0, encodes())
    assert latent["samples"].shape[2] == 6
    assert latent["noise_mask"][0, 0, :, 0, 0].tolist() == pytest.approx([1, 1, 1, 0.3, 0, 0])
    spans = positive[0][1]["keyframe_idxs"]
    # The last of 17 frames, then 0 and those after it.
    assert [tuple(spans[0, 0, at].tolist()) for at in (0, 8, 16)] == [(16, 17), (0, 1), (1, 9)]
    positive, negative, left = ltxv_crop_guides(positive, negative, latent)
    assert left["samples"].shape[2] == 3
    assert all(options["keyframe_idxs"] is None for _, options in (*positive, *negative))
    assert ltxv_crop_guides(positive, negative, left)[2]["samples"].shape[2] == 3


@pytest.mark.parametrize(
    ("images", "frame", "why"),
    [
        (33, 0, "the guide of 33 images begins at frame 0 and ends in cell 5 of 3 in time"),
        (17, 16, "the guide of 17 images begins at frame 9 and ends in cell 4 of 3"),
        (1, 40, "the guide of 1 images begins at frame 40"),
    ],
)
async def test_a_guide_beyond_the_end_is_refused(images: int, frame: int, why: str) -> None:
    with pytest.raises(NodeError, match=why):
        await guided(video(), images, frame)


async def test_references_are_as_small_as_the_loras_file_says() -> None:
    said = await get_ic_lora_parameters(MODEL.with_lora("ic", 1.0), encodes())
    assert said == {"reference_downscale_factor": 2}
    assert await get_ic_lora_parameters(MODEL, encodes()) == {"reference_downscale_factor": 1}
    unread = await get_ic_lora_parameters(MODEL.with_lora("ic", 1.0), encodes(said="half"))
    assert unread == {"reference_downscale_factor": 1}
    *_, latent = await guided(video(), 1, 0, iclora_parameters=said)
    assert (latent["noise_mask"][0, 0, 3] < 0).tolist() == [[False, True, False, True], [True] * 4]
    with pytest.raises(NodeError, match=r"5×2 cells.*multiples of 64 pixels"):
        await guided(video(width=5), 1, 0, iclora_parameters=said)


async def test_another_vae_is_refused_before_it_is_loaded() -> None:
    runtime = encodes(factor=8)
    with pytest.raises(NodeError, match="makes 128 channels with cells of 8 pixels; this node takes one of videos"):
        await guided(video(), 1, 0, runtime)
    with pytest.raises(NodeError, match="this node takes one of videos"):
        await ltxv_latent_upsampler(video(), Recipe("latent_upscaler", "latent_upscale_models", "a"), VAE, runtime)
    with pytest.raises(NodeError, match="LTX-2's videos have five axes and 128 channels"):
        await guided({"samples": torch.zeros(1, 4, 8, 8)}, 1, 0)
