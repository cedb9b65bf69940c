"""A Wan that makes a video block by block: what it keeps of blocks that are done changes nothing but the work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from serve_app.engine.run_state import Answer
from serve_app.engine.trajectory import Trajectory
from serve_app.errors import ModelFileError, NodeError
from serve_app.models.backbone import RecipeBackbone
from serve_app.models.families import Wan, WanCausal
from serve_app.models.families.family import Rows
from serve_app.models.families.video.wan_causal import CausalInputs
from serve_app.models.files.tensors import Tensors
from serve_app.models.network import LoadedNetwork
from serve_app.recipe.context import ContextWindows, FirstFrames
from serve_app.recipe.guidance import SkippedBlocks
from serve_app.recipe.layers import EasyCache
from serve_app.recipe.training import Flow
from serve_app.sampling.forward import Canvas, answered
from serve_app.sampling.request import SamplingRequest
from serve_app.values import SamplerChoice
from tests.unit.engine.mixes import request
from tests.unit.models.sample import random_tensors

CPU = torch.device("cpu")
FAMILY = WanCausal(128, 2, 48, 32)
FRAMES = 5
SIZE = (4, 6)


def network_of(family: Wan) -> nn.Module:
    made = family.build().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / max(4, parameter.shape[-1]) ** 0.5)
    return made


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return network_of(FAMILY)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(count: int = 1) -> CausalInputs:
    latents = torch.zeros(count, 16, FRAMES, *SIZE)
    return FAMILY.inputs(drawn(2, count, 3, 32), {}, "positive", Canvas(latents, latents), CPU, Flow(5.0))


def row(of: CausalInputs, blocks: tuple[int, ...], count: int = 1, **more: Any) -> Rows:
    x = drawn(3, count, 16, FRAMES, *SIZE)[:, :, : sum(blocks)]
    return Rows(x, 0.5, torch.full((count,), 500.0), of.in_blocks(blocks), **more)


def last(made: Tensor, blocks: Sequence[int]) -> Tensor:
    return made[:, :, -blocks[-1] :]


def test_blocks_that_are_done_are_computed_once(network: nn.Module) -> None:
    of = inputs()
    for blocks, computed in (((1,), 1), ((1, 2), 3), ((1, 2), 2), ((1, 2, 2), 4), ((1, 2, 2), 2)):
        asked = row(of, blocks)
        x = FAMILY.call_inputs(network, [asked])["x"]
        assert x is not None
        assert x.shape[2] == computed
        [made] = FAMILY.forward(network, [asked])
        [anew] = FAMILY.forward(network, [row(inputs(), blocks)])
        assert not made[:, :, : -blocks[-1]].any(), "no noise is found in what is done"
        torch.testing.assert_close(made, anew, rtol=1e-4, atol=1e-5)


def test_a_block_sees_what_is_before_it(network: nn.Module) -> None:
    blocks = (1, 2, 2)
    asked = row(inputs(), blocks)
    [made] = FAMILY.forward(network, [asked])
    for frame in (0, 2):
        x = asked.x.clone()
        x[:, :, frame] += 1
        [other] = FAMILY.forward(network, [replace(asked, x=x, inputs=inputs().in_blocks(blocks))])
        assert not torch.allclose(last(made, blocks), last(other, blocks), atol=1e-3)


def test_what_is_kept_of_a_block_does_not_depend_on_those_after_it(network: nn.Module) -> None:
    early, late = inputs(), inputs()
    FAMILY.forward(network, [row(early, (1, 2, 2))])
    FAMILY.forward(network, [row(late, (1, 2))])
    FAMILY.forward(network, [row(late, (1, 2, 2))])
    for one, other in zip(early.past.layers((0,)), late.past.layers((0,)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert early.past.frames((0,)) == 3


@pytest.mark.parametrize("together", [True, False])
def test_rows_of_a_run_may_be_together_or_apart(network: nn.Module, together: bool) -> None:
    of, blocks = inputs(2), (1, 2)
    [wanted] = FAMILY.forward(network, [row(inputs(2), blocks, 2)])
    parts = [
        replace(
            row(of, blocks, 2),
            x=row(of, blocks, 2).x[number : number + 1],
            timestep=torch.full((1,), 500.0),
            inputs=replace(of, text=of.text[number : number + 1], row=of.row[number : number + 1], blocks=blocks),
        )
        for number in range(2)
    ]
    for _ in range(2):
        made = FAMILY.forward(network, parts) if together else [FAMILY.forward(network, [part])[0] for part in parts]
        torch.testing.assert_close(torch.cat(made), wanted, rtol=1e-4, atol=1e-5)


def test_nothing_is_kept_under_patches_of_layers(network: nn.Module) -> None:
    of, blocks = inputs(), (1, 2)
    patched = row(of, blocks, layers=(SkippedBlocks((1,)),))
    [skipped] = FAMILY.forward(network, [patched])
    [usual] = FAMILY.forward(network, [row(of, blocks)])
    [again] = FAMILY.forward(network, [patched])
    assert not torch.allclose(usual, skipped, atol=1e-3)
    torch.testing.assert_close(again, skipped)


def test_rows_in_blocks_share_no_forward_with_another_run_and_are_not_recorded() -> None:
    x, of = torch.zeros(1, 16, FRAMES, *SIZE), inputs()
    assert FAMILY.group_key(x, of) == FAMILY.group_key(x, inputs())
    assert FAMILY.group_key(x, of.in_blocks((3, 2))) != FAMILY.group_key(x, inputs().in_blocks((3, 2)))
    assert FAMILY.is_steady(row(of, ()))
    assert FAMILY.variant([row(of, (3, 2))]) is None
    assert FAMILY.pad_rows([row(of, (3, 2))], 1) is None


def test_a_network_that_reads_more_than_texts_is_refused() -> None:
    of_images = random_tensors(Wan(128, 1, 48, 32, 36))
    shapes = {name.removeprefix("model.diffusion_model."): tuple(tensor.shape) for name, tensor in of_images.items()}
    tensors = Tensors(shapes, "'a'", {"config": '{"transformer": {"causal_ar": true}}'})
    assert WanCausal.recognises(tensors)
    with pytest.raises(ModelFileError, match="reads more than texts"):
        WanCausal.probe(tensors)


def backbone(family: Wan, network: nn.Module) -> RecipeBackbone:
    return RecipeBackbone(LoadedNetwork("a Wan", family, network, Flow(5.0)))


def asked(frames: int = 2, **more: Any) -> SamplingRequest:
    text = [(drawn(4, 1, 3, 32), {})]
    sampler = SamplerChoice("ar_video", {"num_frame_per_block": frames})
    made = request(shape=(1, 16, FRAMES, *SIZE), seed=7, steps=3, positive=text, negative=text)
    return replace(made, sampler=sampler, **more)


def with_patch(patch: FirstFrames | ContextWindows | EasyCache) -> SamplingRequest:
    made = asked()
    return replace(made, guider=replace(made.guider, backbone=made.guider.backbone.with_patch(patch)))


def run(trajectory: Trajectory, at_most: int = 1000) -> None:
    trajectory.start()
    while trajectory.result is None and at_most:
        trajectory.feed(trajectory.denoised([answered([piece])[0] for piece in trajectory.pieces]))
        trajectory.advance()
        at_most -= 1


def test_a_run_that_goes_on_elsewhere_makes_the_same_video(network: nn.Module) -> None:
    whole = Trajectory(backbone(FAMILY, network), asked())
    run(whole)
    steps: list[tuple[int, int]] = []
    begun = Trajectory(backbone(FAMILY, network), asked(), lambda *of: steps.append(of), keeps_answers=True)
    run(begun, 5)
    state: list[Answer] = list(begun.answers or ())
    assert len(state) == 5
    assert steps[-1] == (1, 3), "nine evaluations are shown as three steps"
    later = Trajectory(backbone(FAMILY, network), asked(), state=state)
    run(later)
    assert later.has_state
    assert whole.result is not None
    assert later.result is not None
    torch.testing.assert_close(later.result.latents, whole.result.latents, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        (Wan(128, 1, 48, 32), {}, "the model was not trained to"),
        (FAMILY, {"noise_mask": torch.ones(1, 1, 8, 8)}, "takes no noise mask"),
    ],
)
def test_what_cannot_be_made_block_by_block_is_refused(family: Wan, change: dict[str, Any], words: str) -> None:
    with pytest.raises(NodeError, match=words):
        run(Trajectory(backbone(family, network_of(family)), asked(**change)))


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        (FirstFrames(torch.zeros(1, 16, 1, 2, 2)), r"begins with \(1, 2, 2\) .* have \(5, 4, 6\)"),
        (ContextWindows(3, 1, "batched", 1, False, "flat", False), "takes no context windows"),
    ],
)
def test_a_beginning_of_another_size_and_context_windows_are_refused(
    network: nn.Module, patch: FirstFrames | ContextWindows, words: str
) -> None:
    with pytest.raises(NodeError, match=words):
        run(Trajectory(backbone(FAMILY, network), with_patch(patch)))


def test_what_a_run_keeps_is_counted() -> None:
    of_a_video = torch.empty(1, 16, 21, 60, 104, device="meta")
    assert WanCausal(1536, 30, 8960, 4096).kept_bytes(of_a_video) == 2 * 30 * 21 * 30 * 52 * 1536 * 2


@pytest.mark.parametrize("whole", [True, False])
def test_step_caches_are_left_out(network: nn.Module, whole: bool) -> None:
    requests = asked(), with_patch(EasyCache(9.0, 0.0, 1.0, whole))
    usual, cached = (Trajectory(backbone(FAMILY, network), request) for request in requests)
    run(usual)
    run(cached)
    assert usual.result is not None
    assert cached.result is not None
    torch.testing.assert_close(cached.result.latents, usual.result.latents)
