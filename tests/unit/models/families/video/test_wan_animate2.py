"""Wan Animate 2: what its rows read of the pose video, alone, together, in an area and in a context window."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from serve_app.errors import NodeError
from serve_app.models.families import WanAnimate2
from serve_app.models.families.family import Rows
from serve_app.models.families.video.wan_animate2 import Animate2Inputs
from serve_app.models.forward_cost import forward_cost
from serve_app.recipe.context import ContextWindows
from serve_app.recipe.training import Flow
from serve_app.sampling.forward import Canvas
from serve_app.sampling.guidance.windows import Window, longest_window

FAMILY = WanAnimate2(128, 2, 48, 32, 36, 24)
SIZE = (3, 4, 6)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    made = FAMILY.build().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / max(4, parameter.shape[-1]) ** 0.5)
    return made


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(seed: int, frames: int = 3, **options: Any) -> Animate2Inputs:
    latents = torch.zeros(1, 16, frames, *SIZE[1:])
    said = {"pose_video_latent": drawn(seed, 1, 16, frames - 1, *SIZE[1:]), **options}
    return FAMILY.inputs(drawn(seed + 1, 1, 3, 32), said, "positive", Canvas(latents, latents), CPU, Flow(5.0))


CPU = torch.device("cpu")


def row(seed: int, of: Animate2Inputs) -> Rows:
    return Rows(drawn(seed, 1, 16, *SIZE), 0.5, torch.tensor([100.0 * seed]), of)


def test_rows_of_several_jobs_in_one_forward_are_those_of_forwards_of_their_own(network: nn.Module) -> None:
    rows = [
        row(1, inputs(2, cross_attn_pose=drawn(3, 1, 7, 32), pose_strength=0.5)),
        row(4, inputs(5, reference_strength=2.0)),
    ]
    together = FAMILY.forward(network, rows)
    for one, made in zip(rows, together, strict=True):
        [alone] = FAMILY.forward(network, [one])
        torch.testing.assert_close(made, alone)


def test_what_moves_and_the_strengths_count(network: nn.Module) -> None:
    [usual] = FAMILY.forward(network, [row(1, inputs(2))])
    for other in (inputs(3), inputs(2, pose_strength=0.5), inputs(2, reference_strength=0.5)):
        [made] = FAMILY.forward(network, [row(1, other)])
        assert not torch.allclose(made, usual)


def test_rows_with_and_without_a_pose_video_share_no_forward() -> None:
    x, still = torch.zeros(1, 16, *SIZE), inputs(1, pose_video_latent=None)
    assert still.pose is None
    assert FAMILY.group_key(x, still) != FAMILY.group_key(x, inputs(1))
    assert FAMILY.cells(x, inputs(1)) == FAMILY.cells(x, still) * 5 // 3


def test_a_window_has_the_poses_of_its_frames() -> None:
    whole = inputs(1, frames=9)
    pose = whole.pose
    assert pose is not None
    first, later = (
        whole.in_window(Window(frames, 9, anchor), ()) for frames, anchor in (((0, 1, 2), None), ((3, 4), 2))
    )
    assert first.pose is not None
    assert torch.equal(first.pose, pose[:, :, :2])
    assert later.pose is not None
    assert torch.equal(later.pose, pose[:, :, 2:4])
    assert torch.equal(whole.within((2, 2, 1, 3)).pose, pose[..., 1:3, 3:5])  # type: ignore[arg-type]


def test_a_window_that_goes_on_at_the_beginning_is_refused() -> None:
    with pytest.raises(NodeError, match="goes on at the video's beginning"):
        inputs(1, frames=9).in_window(Window((7, 8, 0), 9), ())


def test_a_forward_costs_what_its_longest_window_does() -> None:
    patch = ContextWindows(3, 1, "standard_static", 1, False, "pyramid", False)
    told = {"pose_video_latent": drawn(1, 1, 16, 8, *SIZE[1:])}

    def peak(frames: int, options: dict[str, Tensor], windows: ContextWindows | None = None) -> int:
        latents = torch.zeros(1, 16, frames, *SIZE[1:])
        text = torch.zeros(1, 3, 32)
        return forward_cost(FAMILY, FAMILY.empty(), latents, text, options, windows).peak_bytes

    short = {"pose_video_latent": drawn(1, 1, 16, 3, *SIZE[1:])}
    assert peak(9, told, patch) == pytest.approx(peak(4, short), rel=0.3)
    assert peak(9, told) > 1.5 * peak(9, told, patch)
    long = torch.zeros(1, 16, 9, 2, 2)
    assert longest_window(patch, long).shape[2] == 4
    assert longest_window(None, long) is long
