"""The nodes of Kandinsky 5: values in, values out."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch

from serve_app.errors import NodeError
from serve_app.nodes.video.kandinsky import (
    clip_text_encode_kandinsky5,
    kandinsky5_image_to_video,
    normalize_video_latent_start,
)
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.latents.latent_formats import HUNYUAN_VIDEO, WAN_22
from serve_app.values import Texts
from tests.unit.nodes.video.test_hunyuan_video import Runtime

VAE = Recipe("vae", "vae", "hunyuan_video_vae_bf16.safetensors")


def asked(images: int | None, runtime: Any) -> Any:
    image = None if images is None else torch.linspace(0.1, 1, images * 40 * 70 * 3).view(images, 40, 70, 3)
    text = [(torch.zeros(1, 2, 3), {})]
    return asyncio.run(kandinsky5_image_to_video(text, text, VAE, 64, 32, 13, 2, runtime, image))


def test_a_video_begins_with_images_in_the_place_of_its_first_frames() -> None:
    [(_, said)], [(_, denied)], latent, begin = asked(5, Runtime(HUNYUAN_VIDEO))
    assert latent["samples"].shape == (2, 16, 4, 4, 8)
    assert not latent["samples"].any()
    assert said["time_dim_replace"] is begin["samples"]
    assert begin["samples"].shape[1:3] == (16, 2)
    assert said["concat_mask"].mean(dim=(0, 1, 3, 4)).tolist() == [0, 0, 1, 1]
    assert denied["concat_mask"] is said["concat_mask"]


def test_without_images_nothing_is_given() -> None:
    [(_, said)], _, latent, begin = asked(None, Runtime())
    assert said == {}
    assert latent["samples"].shape == (2, 16, 4, 4, 8)
    assert begin["samples"].shape[2] == 0


def test_another_familys_autoencoder_is_refused() -> None:
    with pytest.raises(NodeError, match="this node takes one of videos, that makes 16 channels with cells of 8 pixels"):
        asked(1, Runtime(WAN_22))


def test_each_encoder_has_a_text_of_its_own() -> None:
    class Encoding:
        async def encode_text(self, clip: Recipe, texts: Texts) -> Any:
            return texts

    said: Any = asyncio.run(clip_text_encode_kandinsky5(VAE, "a fox", "a red fox", Encoding()))  # type: ignore[arg-type]
    assert (said.l, said.qwen25_7b, said.t5xxl) == ("a fox", "a red fox", None)


def test_first_frames_take_the_mean_of_those_after_them_within_bounds() -> None:
    samples = torch.randn(1, 16, 9, 4, 4, generator=torch.Generator().manual_seed(0))
    samples[:, :, :2] = samples[:, :, :2] * 2 + 3
    made = normalize_video_latent_start({"samples": samples}, 2, 5)["samples"]
    # The mean comes down by 0.3 at most, the deviation by 0.35.
    assert torch.allclose(made[:, :, :2].mean(dim=(1, 3, 4)), samples[:, :, :2].mean(dim=(1, 3, 4)) - 0.3, atol=1e-4)
    assert torch.allclose(made[:, :, :2].std(dim=(1, 3, 4)), samples[:, :, :2].std(dim=(1, 3, 4)) - 0.35, atol=1e-4)
    assert torch.equal(made[:, :, 2:], samples[:, :, 2:])


def test_a_video_of_first_frames_alone_is_refused() -> None:
    with pytest.raises(NodeError, match="the video has 3 latent frames, and none after the first 4"):
        normalize_video_latent_start({"samples": torch.zeros(1, 16, 3, 2, 2)}, 4, 5)


def test_a_single_frame_is_left_as_it_is() -> None:
    latent = {"samples": torch.zeros(1, 16, 1, 2, 2)}
    assert normalize_video_latent_start(latent, 4, 5) is latent
