"""The nodes of HunyuanVideo 1.5: values in, values out."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.nodes.video.hunyuan_video import empty_hunyuan_video15_latent, hunyuan_video15_image_to_video
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.latents.latent_formats import HUNYUAN_VIDEO_15, WAN
from serve_app.sampling.latents.latents import LatentFormat

VAE = Recipe("vae", "vae", "hunyuanvideo15_vae_fp16.safetensors")


class Runtime:
    """A runtime whose autoencoder keeps some pixels, in the shape of a format."""

    def __init__(self, made: LatentFormat = HUNYUAN_VIDEO_15) -> None:
        self.made = made

    async def family(self, vae: Recipe) -> Any:
        return SimpleNamespace(frames=self.made.frames, factor=self.made.factor, latent_channels=self.made.channels)

    async def encode(self, vae: Recipe, images: Tensor) -> Tensor:
        kept = images[None, ::4, ::16, ::16, :1].movedim(-1, 1)
        return kept.expand(1, self.made.channels, -1, -1, -1)


def asked(images: int | None, runtime: Any) -> Any:
    image = None if images is None else torch.linspace(0.1, 1, images * 40 * 70 * 3).view(images, 40, 70, 3)
    text = [(torch.zeros(1, 2, 3), {})]
    return asyncio.run(hunyuan_video15_image_to_video(text, text, VAE, 64, 32, 13, 2, runtime, image))


def test_empty_latents_have_a_cell_of_sixteen_pixels_and_four_images() -> None:
    latent = empty_hunyuan_video15_latent(64, 32, 13, 2)
    assert latent["samples"].shape == (2, 32, 4, 2, 4)
    assert latent["downscale_ratio_spacial"] == 16


def test_a_video_begins_with_images_that_are_marked_as_given() -> None:
    [(_, said)], [(_, denied)], latent = asked(5, Runtime())
    assert latent["samples"].shape == said["concat_latent_image"].shape == (2, 32, 4, 2, 4)
    assert said["concat_latent_image"][:, :, :2].all()
    assert not said["concat_latent_image"][:, :, 2:].any()
    assert said["concat_mask"].mean(dim=(0, 1, 3, 4)).tolist() == [0, 0, 1, 1]
    assert denied["concat_mask"] is said["concat_mask"]


def test_without_images_nothing_is_given() -> None:
    [(_, said)], _, latent = asked(None, Runtime())
    assert said == {}
    assert not latent["samples"].any()


def test_another_familys_autoencoder_is_refused() -> None:
    with pytest.raises(NodeError, match="makes 16 channels with cells of 8 pixels; this node takes one of videos"):
        asked(1, Runtime(WAN))
