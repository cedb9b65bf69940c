"""The nodes of Wan: what they refuse, and what is known of their conditionings without ComfyUI."""

from __future__ import annotations

import asyncio
import contextvars
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from serve_app.config.limits import SizeLimits
from serve_app.errors import NodeError
from serve_app.execution.executing import Executing, enter
from serve_app.nodes.latent.transform import trim_video_latent
from serve_app.nodes.registry import BUILTIN
from serve_app.nodes.video.wan_camera import wan_camera_embedding
from serve_app.nodes.video.wan_tracks import generate_tracks, wan_move_concat_track
from serve_app.values import Conditioning


@dataclass(frozen=True)
class Vae:
    """A VAE's family, and the runtime that has it alone: all of a latent is the mean of the images."""

    latent_channels: int = 16
    factor: int = 8
    frames: int = 4

    async def family(self, vae: Any) -> Vae:
        return self

    async def encode(self, vae: Any, images: Tensor) -> Tensor:
        height, width = (side // self.factor for side in images.shape[1:3])
        return images.mean().expand(1, self.latent_channels, (len(images) - 1) // 4 + 1, height, width)


SIZE = {"width": 32, "height": 16, "length": 5, "batch_size": 1}
PICTURE = torch.rand(1, 16, 32, 3)
WITHOUT_IMAGES: dict[str, dict[str, Any]] = {
    "WanImageToVideo": {},
    "WanFirstLastFrameToVideo": {},
    "WanFunInpaintToVideo": {},
    "WanFunControlToVideo": {},
    "Wan22FunControlToVideo": {},
    "WanVaceToVideo": {"strength": 1.0},
    "WanCameraImageToVideo": {},
    "Wan22ImageToVideoLatent": {},
    "WanSCAILToVideo": {
        "pose_strength": 1.0,
        "pose_start": 0.0,
        "pose_end": 1.0,
        "video_frame_offset": 0,
        "previous_frame_count": 5,
    },
}


def test_videos_and_images_to_edit_by_are_encoded_in_order_and_images_at_their_own_proportions() -> None:
    given = {
        "source_video": torch.full((9, 20, 40, 3), 0.1),
        "reference_video": torch.full((3, 64, 32, 3), 0.2),
        "reference_images": {"reference_image_0": torch.full((2, 100, 50, 3), 0.3)},
    }
    positive, negative, latent = made("BerniniConditioning", Vae(), **given, ref_max_size=48)
    context = positive[0][1]["context_latents"]
    assert [tuple(one.shape[2:]) for one in context] == [(2, 2, 4), (1, 6, 4), (1, 6, 4), (1, 6, 4)]
    assert [round(float(one.mean()), 3) for one in context] == [0.1, 0.2, 0.3, 0.3]
    assert negative[0][1]["context_latents"] is context
    assert latent["samples"].shape == (1, 16, 2, 2, 4)
    assert "context_latents" not in made("BerniniConditioning", Vae())[0][0][1]
    with pytest.raises(NodeError, match="makes 48 channels with cells of 16 pixels; this node takes one of videos"):
        made("BerniniConditioning", Vae(48, 16), **given)


def test_tracks_that_cannot_be_read_or_joined_are_refused() -> None:
    tracks, length = BUILTIN["WanMoveTracksFromCoords"]().read('[{"x": 1, "y": 2}, {"x": 3, "y": 4}]')  # type: ignore[attr-defined]
    assert tracks["track_path"].tolist() == [[[1.0, 2.0]], [[3.0, 4.0]]]
    assert length == 2
    shown = generate_tracks(
        32, 16, 0, 0, 1, 1, 3, 2, 0.1, False, 0, 0, "linear", torch.eye(3)[:, None] * torch.ones(1, 1, 3)
    )
    assert shown[0]["track_visibility"].all()
    with pytest.raises(NodeError, match="track_mask has 2 images, and the tracks are 3 long"):
        generate_tracks(32, 16, 0, 0, 1, 1, 3, 2, 0.1, False, 0, 0, "linear", torch.ones(2, 4, 4))
    with pytest.raises(NodeError, match="the tracks are 2 and 3 images long"):
        wan_move_concat_track(tracks, shown[0])
    for text in ("[[1, 2]]", "{", '[{"x": "a"}]', "3"):
        with pytest.raises(NodeError, match=r"tracks must be a JSON list of lists of \{x, y\}"):
            BUILTIN["WanMoveTracksFromCoords"]().read(text)  # type: ignore[attr-defined]


def test_a_cameras_path_of_another_size_than_the_video_is_refused_by_its_network() -> None:
    rays, *size = wan_camera_embedding("Zoom Out", 48, 32, 9)
    assert rays.shape == (1, 24, 3, 32, 48)
    assert size == [48, 32, 9]
    # The first image stands for all of its cell; directions have length 1.
    assert torch.equal(rays[:, 0::4, 0], rays[:, 3::4, 0])
    torch.testing.assert_close(rays[:, 12::4].norm(dim=1), torch.ones(1, 3, 32, 48))


def said() -> Conditioning:
    return [(torch.zeros(1, 1, 2), {})]


def made(node: str, vae: Vae, **given: Any) -> Any:
    pair = {} if node == "Wan22ImageToVideoLatent" else {"positive": said(), "negative": said()}
    return asyncio.run(BUILTIN[node]().encode(**{**pair, **SIZE, **given}, vae=None, runtime=vae))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("node", "vae", "given", "words"),
    [
        ("WanImageToVideo", Vae(4, frames=0), {"start_image": PICTURE}, "one of images alone and makes 4 channels"),
        (
            "WanSCAILToVideo",
            Vae(48, 16),
            WITHOUT_IMAGES["WanSCAILToVideo"],
            "videos and makes 48 channels with cells of",
        ),
        ("WanFirstLastFrameToVideo", Vae(frames=0), {}, "this node takes one of videos$"),
        ("WanFunInpaintToVideo", Vae(frames=0), {}, "one of images alone"),
        ("WanFunControlToVideo", Vae(48, 16), {"control_video": PICTURE}, "videos and makes 48 channels with cells of"),
        (
            "WanFunControlToVideo",
            Vae(48, 16),
            {"start_image": PICTURE},
            "that makes 16 channels with cells of 8 pixels$",
        ),
        (
            "Wan22FunControlToVideo",
            Vae(16, 16),
            {},
            "16 channels with cells of 8 pixels or 48 channels with cells of 16",
        ),
        ("WanVaceToVideo", Vae(48, 16), {"strength": 1.0}, "that makes 16 channels"),
        ("Wan22ImageToVideoLatent", Vae(16, 8), {"start_image": PICTURE}, "that makes 48 channels with cells of 16"),
        ("WanVaceToVideo", Vae(), {"strength": 1.0, "width": 30}, "width 30 and height 16 must be multiples of 8"),
    ],
)
def test_a_vae_that_the_node_cannot_use_is_refused_with_what_it_makes_and_what_would_do(
    node: str, vae: Vae, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(NodeError, match=words):
        made(node, vae, **given)


@pytest.mark.parametrize("node", ["WanImageToVideo", "WanFunControlToVideo"])
def test_a_vae_that_is_not_needed_is_not_looked_at(node: str) -> None:
    *_, latent = made(node, Vae(4, frames=0))
    assert latent["samples"].shape == (1, 16, 2, 2, 4)


def test_a_second_control_stands_behind_the_first() -> None:
    first, second = 0.25, 0.75
    once = made("WanVaceToVideo", Vae(), strength=first)
    twice = made("WanVaceToVideo", Vae(), strength=second, positive=once[0], negative=once[1])
    for conditioning in twice[:2]:
        [(_, options)] = conditioning
        assert options["vace_strength"] == [first, second]
        assert [len(options[name]) for name in ("vace_frames", "vace_mask")] == [2, 2]
    assert [options["vace_strength"] for _, options in once[0]] == [[first]]


@pytest.mark.parametrize("node", WITHOUT_IMAGES)
def test_a_video_over_the_limits_is_refused_before_it_takes_the_memory(node: str) -> None:
    def call() -> Any:
        enter(Executing("job", "1", limits=SizeLimits(value_bytes=10_000_000)))
        return made(node, Vae(), **WITHOUT_IMAGES[node], width=16384, height=16384, length=16381)

    with pytest.raises(NodeError, match=r"limits\.value_bytes of the configuration allows"):
        contextvars.copy_context().run(call)


def test_a_further_part_begins_with_the_end_of_the_last_and_follows_poses_from_there() -> None:
    given = {
        **WITHOUT_IMAGES["WanSCAILToVideo"],
        "length": 9,
        "video_frame_offset": 11,
        "pose_start": 0.25,
        "pose_end": 0.5,
        "previous_frames": torch.rand(20, 16, 32, 3),
        "pose_video": torch.rand(14, 16, 32, 3),
        "pose_video_mask": torch.tensor([1.0, 1.0, 0.0]).expand(30, 16, 32, 3),
    }
    positive, _, latent, further = made("WanSCAILToVideo", Vae(), **given)
    assert further == 15
    assert latent["noise_mask"].mean(dim=(0, 1, 3, 4)).tolist() == [0.0, 0.0, 1.0]
    ranges = [(said.get("start_percent"), said.get("end_percent"), "pose_video_latent" in said) for _, said in positive]
    assert ranges == [(0.0, 0.25 - 1e-5, False), (0.25, 0.5, True), (0.5 + 1e-5, 1.0, False)]
    # Of 14 frames 8 are after the sixth, where the part begins; five of those fill latent frames.
    assert positive[1][1]["pose_video_latent"].shape == (1, 16, 2, 1, 2)
    mask = positive[1][1]["driving_mask_28ch"]
    assert (mask.shape, mask.sum(dim=(0, 1, 3, 4)).nonzero().flatten().tolist()) == ((1, 2, 28, 1, 2), [4, 11, 18, 25])


def test_as_many_cells_are_trimmed_as_a_reference_takes() -> None:
    *_, latent, amount = made("WanVaceToVideo", Vae(), strength=1.0, reference_image=PICTURE)
    trimmed = trim_video_latent(latent, amount)
    assert (latent["samples"].shape[2], trimmed["samples"].shape[2]) == (3, 2)


def test_the_inputs_stay_as_they_were() -> None:
    positive, picture = said(), PICTURE.clone()
    made("WanImageToVideo", Vae(), positive=positive, start_image=picture)
    assert positive[0][1] == {}
    assert torch.equal(picture, PICTURE)
