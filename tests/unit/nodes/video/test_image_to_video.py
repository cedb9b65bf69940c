"""The nodes that begin a video with an image, for SVD and LTX: values in, values out."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from serve_app.nodes.video.ltx import empty_ltxv_latent_video, ltxv_img_to_video, ltxv_img_to_video_inplace
from serve_app.nodes.video.svd import (
    image_only_checkpoint_loader,
    svd_image_to_video,
    video_linear_cfg_guidance,
    video_triangle_cfg_guidance,
)
from serve_app.recipe.guidance import CfgByFrame
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.latents.latent_formats import LTX2
from serve_app.values import ClipVisionOutput

MODEL, SEES, VAE = image_only_checkpoint_loader("svd.safetensors")


class Runtime:
    """A runtime whose VAEs keep some pixels, and whose encoder sees the mean colour."""

    async def see(self, encoder: Recipe, images: Tensor, *, crop: bool) -> ClipVisionOutput:
        assert (encoder, crop) == (SEES, True)
        colours = images.mean(dim=(1, 2))
        return ClipVisionOutput(colours[:, None], colours[:, None], colours)

    async def encode(self, vae: Recipe, images: Tensor) -> Tensor:
        if vae == VAE:
            return images[:, ::8, ::8].movedim(-1, 1)
        return images[None, ::8, ::32, ::32, :1].movedim(-1, 1).expand(1, LTX2.channels, -1, -1, -1)

    async def family(self, vae: Recipe) -> Any:
        return SimpleNamespace(frames=LTX2.frames, factor=LTX2.factor, latent_channels=LTX2.channels)


RUNTIME: Any = Runtime()
IMAGE = torch.linspace(0, 1, 2 * 32 * 48 * 3).view(2, 32, 48, 3)


def test_a_checkpoint_has_a_network_an_image_encoder_and_an_autoencoder() -> None:
    assert [part.part for part in (MODEL, SEES, VAE)] == ["backbone", "clip_vision", "vae"]
    assert video_linear_cfg_guidance(MODEL, 1.5).all(CfgByFrame) == (CfgByFrame(1.5),)
    assert video_triangle_cfg_guidance(MODEL, 1.5).all(CfgByFrame) == (CfgByFrame(1.5, triangle=True),)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_svd_is_shown_the_image_as_seen_and_as_latents(noise: float) -> None:
    made = svd_image_to_video(SEES, IMAGE, VAE, 32, 16, 5, 90, 8, noise, RUNTIME)
    [(text, said)], [(nothing, of_nothing)], latent = asyncio.run(made)
    assert text.shape == nothing.shape == (1, 2, 3)
    assert said["concat_latent_image"].shape == of_nothing["concat_latent_image"].shape == (2, 3, 2, 4)
    assert not nothing.any()
    assert not of_nothing["concat_latent_image"].any()
    assert latent["samples"].shape == (5, 4, 2, 4)
    assert (said["fps"], said["motion_bucket_id"], said["augmentation_level"]) == (8, 90, noise)
    [(_, again)], _, _ = asyncio.run(svd_image_to_video(SEES, IMAGE, VAE, 32, 16, 5, 90, 8, noise, RUNTIME))
    assert torch.equal(again["concat_latent_image"], said["concat_latent_image"])
    assert bool((said["concat_latent_image"] > 1).any()) == (noise > 0)


def test_ltx_begins_a_new_video_with_an_image_as_it_begins_a_given_one() -> None:
    vae = Recipe("vae", "checkpoints", "ltx.safetensors")
    conds = asyncio.run(ltxv_img_to_video([], [], vae, IMAGE[:1], 64, 96, 17, 1, 0.75, RUNTIME))
    assert conds[:2] == ([], [])
    begun = asyncio.run(
        ltxv_img_to_video_inplace(vae, IMAGE[:1], empty_ltxv_latent_video(64, 96, 17, 1), 0.75, False, RUNTIME)
    )
    assert conds[2]["samples"].shape == (1, LTX2.channels, 3, 3, 2)
    assert all(torch.equal(conds[2][name], begun[name]) for name in ("samples", "noise_mask"))
    assert conds[2]["noise_mask"].flatten().tolist() == [0.25, 1.0, 1.0]
