"""The nodes of Wan Animate 2: values in, values out."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.nodes.registry import BUILTIN
from serve_app.recipe.recipe import Recipe

VAE = Recipe("vae", "vae", "wan.safetensors")
VIDEO = torch.linspace(0, 1, 30)[:, None, None, None].expand(-1, 32, 48, 3)
USUAL: dict[str, Any] = {"width": 48, "height": 32, "length": 9, "batch_size": 1, "video_frame_offset": 0}
USUAL |= {"pose_strength": 1.0, "pose_start_percent": 0.0, "pose_end_percent": 1.0, "reference_image_strength": 1.0}


class Runtime:
    """A runtime whose autoencoder keeps a pixel of each cell."""

    async def family(self, vae: Recipe) -> Any:
        return SimpleNamespace(frames=4, factor=8, latent_channels=16)

    async def encode(self, vae: Recipe, images: Tensor) -> Tensor:
        return images[None, ::4, ::8, ::8, :1].movedim(-1, 1).expand(1, 16, -1, -1, -1)


def asked(**given: Any) -> Any:
    text = [(torch.zeros(1, 2, 3), {})]
    node = BUILTIN["WanAnimate2ToVideo"]
    call = getattr(node(), node.FUNCTION)  # type: ignore[attr-defined]
    return asyncio.run(call(positive=text, negative=text, vae=VAE, runtime=Runtime(), **{**USUAL, **given}))


def test_a_reference_is_a_frame_before_the_video_and_the_pose_video_has_none() -> None:
    [(_, said)], [(_, denied)], latent, trim, again, further = asked(
        reference_image=VIDEO[5:6], pose_video=VIDEO, video_frame_offset=4
    )
    assert latent["samples"].shape == said["concat_latent_image"].shape == (1, 16, 4, 4, 6)
    assert (trim, again, further) == (1, 0, 13)
    assert said["concat_mask"].mean(dim=(0, 1, 3, 4)).tolist() == [0, 1, 1, 1]
    torch.testing.assert_close(said["pose_video_latent"][0, 0, :, 0, 0], VIDEO[[4, 8, 12], 0, 0, 0])
    assert denied["pose_video_latent"] is said["pose_video_latent"]
    assert denied["cross_attn_pose"] is said["cross_attn_pose"]


def test_a_further_part_begins_with_the_last_image_and_holds_the_poses_end() -> None:
    [(_, said)], _, _, _, again, further = asked(continue_motion=VIDEO[:7], pose_video=VIDEO, video_frame_offset=28)
    assert (again, further) == (1, 36)
    assert said["concat_mask"].mean(dim=(0, 1, 3, 4)).tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(said["pose_video_latent"][0, 0, 1:, 0, 0], VIDEO[[29, 29], 0, 0, 0])


def test_poses_may_count_for_a_part_of_the_sampling() -> None:
    positive, *_ = asked(pose_video=VIDEO, pose_start_percent=0.25, pose_end_percent=0.5)
    parts = [(said["start_percent"], said["end_percent"], "pose_video_latent" in said) for _, said in positive]
    assert parts == [(0.25, 0.5, True), (0.0, 0.25, False), (0.5, 1.0, False)]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"pose_start_percent": 0.6, "pose_end_percent": 0.4}, "after pose_end_percent"),
        ({"pose_video": VIDEO, "video_frame_offset": 30}, "30 images, and the part begins at 30"),
    ],
)
def test_what_leaves_no_pose_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(NodeError, match=words):
        asked(**given)


def test_a_cache_changes_nothing() -> None:
    model = Recipe("backbone", "diffusion_models", "animate.safetensors")
    node = BUILTIN["WanAnimate2Cache"]
    assert getattr(node(), node.FUNCTION)(model, "gpu", "int8") == (model,)  # type: ignore[attr-defined]
