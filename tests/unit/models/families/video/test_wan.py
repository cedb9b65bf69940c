"""How editions of Wan are told apart, and what they cannot be told."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from serve_app.errors import ModelFileError, NodeError
from serve_app.models.families import Wan, Wan22
from serve_app.models.families.video.wan import WanInputs
from serve_app.models.files.parts import find_part
from serve_app.models.files.tensors import Tensors
from serve_app.recipe.training import Flow
from serve_app.sampling.forward import Canvas
from serve_app.store.models.kinds import refusal
from serve_app.values import ClipVisionOutput
from tests.parity.wan_cases import METADATA, NETS
from tests.unit.models.sample import random_tensors

CPU = torch.device("cpu")


def shapes(family: Wan) -> dict[str, tuple[int, ...]]:
    prefix = "model.diffusion_model."
    return {name.removeprefix(prefix): tuple(t.shape) for name, t in random_tensors(family).items()}


def inputs(family: Wan, options: dict[str, Any], frames: int = 2, mask: torch.Tensor | None = None) -> WanInputs:
    latents = torch.zeros(1, family.latent_format.channels, frames, 4, 6)
    text = torch.zeros(1, 3, family.text_width)
    return family.inputs(text, options, "positive", Canvas(latents, latents, mask), CPU, Flow(8.0))


@pytest.mark.parametrize("net", NETS)
def test_an_edition_is_read_off_names_and_shapes(net: str) -> None:
    of_file = Tensors(shapes(NETS[net]), "'a.safetensors'", METADATA.get(net, {}))
    found = find_part("backbone", [of_file])
    assert found.family == NETS[net]
    assert not found.unused
    assert refusal("backbone", of_file.shapes) is None


@pytest.mark.parametrize(
    ("family", "billions"),
    [
        (Wan(1536, 30, 8960, 4096), 1.419),
        (Wan(5120, 40, 13824, 4096), 14.288),
        (Wan(5120, 40, 13824, 4096, 36, 1280), 16.395),
        (Wan22(3072, 30, 14336, 4096, 48), 5.0),
        (Wan(5120, 40, 13824, 4096, vace=8, vace_channels=96), 17.338),
    ],
)
def test_the_published_networks_have_their_size(family: Wan, billions: float) -> None:
    assert sum(p.numel() for p in family.empty().parameters()) / 1e9 == pytest.approx(billions, abs=5e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"face_adapter.fuser_blocks.0.k_norm.weight": (8,)}, "it looks like a diffusion network of Wan Animate"),
        ({"casual_audio_encoder.encoder.final_linear.weight": (8,)}, "it looks like a diffusion network of Wan S2V"),
        (
            {f"vace_blocks.{number}.after_proj.weight": (8,) for number in range(3)},
            "has 3 blocks of VACE for 2 of Wan; supported is a number that divides those",
        ),
        ({"patch_embedding_pose.weight": (256, 20, 1, 2, 2)}, "it looks like a diffusion network of Wan SCAIL"),
        (
            {"patch_embedding_pose.weight": (256, 20, 1, 2, 2), "patch_embedding_mask.weight": (256, 28, 1, 2, 2)},
            "reads 16 channels of videos, 20 of poses and 28 of masks; supported are 20, 20 and 28",
        ),
        ({"patch_embedding.weight": (200, 16, 1, 2, 2)}, "a Wan backbone 200 wide; supported are multiples of 128"),
    ],
)
def test_another_edition_is_refused_with_what_it_does(changed: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        find_part("backbone", [Tensors(shapes(NETS["t2v"]) | changed, "'a.safetensors'")])


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        ("i2v", {"concat_latent_image": torch.zeros(1, 16, 3, 4, 6)}, "has 3 latent frames, and the latents have 2"),
        (
            "i2v",
            {"concat_latent_image": torch.zeros(1, 16, 4, 6)},
            r"is \(1,16,4,6\); a video's is \(batch,channels,time",
        ),
        (
            "i2v",
            {"concat_latent_image": torch.zeros(1, 16, 2, 4, 6), "concat_mask": torch.zeros(1, 1, 32, 48)},
            r"is \(1,1,32,48\); a video's is",
        ),
        ("control_22", {"concat_latent_image": torch.zeros(1, 16, 2, 4, 6)}, "have 16 channels, .* reads 32 with"),
        (
            "i2v",
            {"clip_vision_output": ClipVisionOutput(torch.zeros(0), torch.zeros(1, 4, 1024), torch.zeros(0))},
            "the CLIP vision output is 1024 wide, and this Wan reads one 1280 wide",
        ),
        (
            "flf",
            {"clip_vision_output": ClipVisionOutput(torch.zeros(0), torch.zeros(1, 12, 1280), torch.zeros(0))},
            "has 12 tokens, and this Wan has places for 10",
        ),
        ("control_22", {"reference_latents": [torch.zeros(1, 16, 1, 4, 4)]}, r"reference is \(4, 4\) latent cells"),
        ("vace", {"vace_frames": [torch.zeros(1, 32, 3, 4, 6)]}, r"is given \(3, 4, 6\) latent frames, rows and"),
        (
            "vace",
            {"vace_frames": [torch.zeros(1, 32, 2, 4, 6)] * 2, "vace_strength": [1.0]},
            "is given 2 videos with 2 masks and 1 strengths",
        ),
        (
            "animate2",
            {"pose_video_latent": torch.zeros(1, 16, 2, 4, 6)},
            r"the pose video is \(2, 4, 6\) latent frames, rows and columns, and the latents to sample take \(1, ",
        ),
        (
            "animate2",
            {"pose_video_latent": torch.zeros(1, 16, 1, 4, 6), "cross_attn_pose": torch.zeros(1, 2, 8)},
            "8 wide",
        ),
        ("scail", {"reference_latents": [torch.zeros(1, 16, 1, 4, 4)]}, r"a reference is \(4, 4\) latent cells"),
        (
            "scail",
            {"reference_latents": [torch.zeros(1, 16, 1, 4, 6)], "ref_mask_28ch": torch.zeros(1, 2, 28, 4, 6)},
            r"'ref_mask_28ch' is \(28, 2, 4, 6\) .*; what it masks takes \(28, 3, 4, 6\)",
        ),
        (
            "scail",
            {"pose_video_latent": torch.zeros(1, 16, 2, 2, 2), "driving_mask_28ch": torch.zeros(1, 2, 28, 2, 4)},
            r"'driving_mask_28ch' is \(28, 2, 2, 4\) .*; what it masks takes \(28, 2, 2, 2\)",
        ),
        ("vace", {"vace_frames": [torch.zeros(1, 16, 2, 4, 6)]}, "is given 80 channels, and this Wan reads 96"),
    ],
)
def test_conditioning_that_an_edition_cannot_take_is_refused(net: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(NodeError, match=message):
        inputs(NETS[net], options)


def test_what_is_concatenated_to_x_is_cropped_with_the_area() -> None:
    cells = torch.arange(24.0).view(1, 1, 1, 4, 6)
    image_inputs = inputs(
        NETS["control_22"],
        {"concat_latent_image": cells.expand(1, 32, 2, 4, 6), "reference_latents": [cells.expand(1, 16, 1, 4, 6)]},
    )
    vace_inputs = inputs(NETS["vace"], {"vace_frames": [cells.expand(1, 32, 2, 4, 6)]})
    parts, vace_part = image_inputs.within((2, 3, 1, 2)), vace_inputs.within((2, 3, 1, 2)).vace[0].frames
    for part, whole in (
        (parts.concat, image_inputs.concat),
        (parts.reference, image_inputs.reference),
        (vace_part, vace_inputs.vace[0].frames),
    ):
        assert part is not None
        assert whole is not None
        assert torch.equal(part, whole[..., 1:3, 2:5])


def test_poses_of_half_the_size_are_cropped_with_half_the_area() -> None:
    cells = torch.arange(24.0).view(1, 1, 1, 4, 6)
    options = {
        "reference_latents": [cells.expand(1, 16, 1, 4, 6)],
        "pose_video_latent": torch.arange(6.0).view(1, 1, 1, 2, 3).expand(1, 16, 2, 2, 3),
    }
    whole: Any = inputs(NETS["scail"], options)
    part: Any = whole.within((2, 4, 2, 2))
    assert torch.equal(part.subjects, whole.subjects[..., 2:4, 2:6])
    assert torch.equal(part.pose, whole.pose[..., 1:2, 1:3])


def test_the_small_model_gets_a_timestep_for_each_frame() -> None:
    mask = torch.ones(1, 1, 2, 4, 6)
    mask[:, :, 0] = 0.0
    mask[:, :, 1, :2] = 0.5
    image_inputs = inputs(NETS["5b"], {}, mask=mask)
    assert image_inputs.noisy is not None
    assert image_inputs.noisy.tolist() == [[0.0, 0.75]]
    assert inputs(NETS["t2v"], {}, mask=mask).noisy is None
