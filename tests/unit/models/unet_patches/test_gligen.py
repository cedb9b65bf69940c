"""Texts in boxes: files of GLIGEN, which rows of a forward are told of them, and what does not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from serve_app.errors import ModelFileError, NodeError
from serve_app.models.control.dit_control_file import open_model_patch
from serve_app.models.control.model_control import ControlImages, ModelPatch
from serve_app.models.families.family import Rows
from serve_app.models.families.unet.unet import UnetInputs
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.unet_patches import gligen
from serve_app.models.unet_patches.grounding import ActiveGrounding
from serve_app.recipe.controls import Grounding
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.guidance.conditioning import resolved
from serve_app.store.models.kinds import refusal
from serve_app.values import Conditioning
from tests.parity.patch_cases import UNET, small_gligen
from tests.unit.models.sample import random_tensors

CPU = torch.device("cpu")
RECIPE = Recipe("model_patch", "gligen", "small.safetensors")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gligen") / RECIPE.name
    save_file(small_gligen(), path)
    return path


@pytest.fixture(scope="module")
def patch(file: Path) -> ModelPatch:
    return ModelPatch(RECIPE.name, open_model_patch(Checkpoint(file)).load(CPU, torch.float32))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("unet") / "unet.safetensors"
    save_file(random_tensors(UNET, torch.float32), path)
    _, module = Checkpoint(path).load("backbone")
    return module


def grounding(count: int, width: int = 768) -> Grounding:
    generator = torch.Generator().manual_seed(count)
    return Grounding(RECIPE, tuple((torch.randn(1, width, generator=generator), (3, 4, 1, n)) for n in range(count)))


def conditioning(**options: Any) -> Conditioning:
    return [(torch.zeros(1, 77, 768), options)]


def rows(seed: int, patch: ModelPatch | None = None, boxes: int = 2) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    x, context = torch.randn(2, 4, 8, 6, generator=generator), torch.randn(2, 77, 768, generator=generator)
    active = None if patch is None else ActiveGrounding(patch, grounding(boxes))
    return Rows(x, 2.0, torch.full((2,), 500.0), UnetInputs(context, boxes=active))


def answered(network: Any, *asked: Rows) -> list[Tensor]:
    with torch.no_grad():
        return UNET.forward(network, asked)


def test_only_rows_with_boxes_are_conditioned_on_them(network: Any, patch: ModelPatch) -> None:
    boxed, other, plain = rows(1, patch), rows(2, patch, boxes=5), rows(3)
    together = answered(network, boxed, plain, other)
    for made, alone in zip(together, [boxed, plain, other], strict=True):
        torch.testing.assert_close(made, answered(network, alone)[0], atol=1e-4, rtol=1e-4)
    assert (together[0] - answered(network, rows(1))[0]).abs().mean() > 0.05
    assert torch.equal(answered(network, plain)[0], answered(network, rows(3))[0])


def test_boxes_are_shares_of_the_canvas_or_of_the_area_that_is_one(patch: ModelPatch) -> None:
    active = ActiveGrounding(patch, grounding(1))
    moved = Grounding(RECIPE, tuple((text, (6, 8, 2, 0)) for text, _ in grounding(1).boxes))
    twice = ActiveGrounding(patch, moved)
    torch.testing.assert_close(active.tokens(8, 8), twice.tokens(16, 16))
    assert not torch.equal(active.tokens(8, 8), active.tokens(16, 16))
    assert active.tokens(8, 8) is active.tokens(8, 8)


def test_the_negative_has_the_positives_boxes_also_with_an_area() -> None:
    boxes = grounding(1)
    plain = resolved({"positive": conditioning(gligen=boxes), "negative": conditioning()}, 8, 8)
    assert plain["negative"][0][1]["gligen"] is boxes
    areas = resolved({"positive": conditioning(gligen=boxes, area=(4, 4, 0, 0)), "negative": conditioning()}, 8, 8)
    assert [options.get("gligen") for _, options in areas["negative"]] == [None, boxes]


def active(conds: dict[str, Conditioning], patch: ModelPatch, network: Any) -> dict[str, Conditioning]:
    return gligen.activated(conds, {RECIPE: patch}, UNET, network)


def test_what_does_not_go_together_is_refused(patch: ModelPatch, network: Any) -> None:
    with pytest.raises(NodeError, match="31 texts are in boxes; GLIGEN is made for 30"):
        active({"positive": conditioning(gligen=grounding(31))}, patch, network)
    with pytest.raises(NodeError, match=r"the text in a box is 4 wide, and 'small\.safetensors' reads 768"):
        active({"positive": conditioning(gligen=grounding(1, width=4))}, patch, network)
    with pytest.raises(NodeError, match=r"has 7 layers for a UNet's attention, and this .* has 0, or others"):
        active({}, patch, torch.nn.Linear(1, 1))
    with pytest.raises(NodeError, match="reads texts in boxes and no images"):
        patch.network.check(patch.name, ControlImages(None), UNET)
    with pytest.raises(NodeError, match="is no GLIGEN model but another model patch"):
        active({}, ModelPatch("other", torch.nn.Identity()), network)  # type: ignore[arg-type]


def test_a_file_is_recognized_by_its_tensor_names(file: Path, tmp_path: Path) -> None:
    tensors = load_file(file)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert refusal("model_patch", shapes) is None
    assert refusal("backbone", shapes) is not None
    torn = tmp_path / "torn.safetensors"
    save_file({name: tensor for name, tensor in tensors.items() if ".fuser." not in name}, torn)
    with pytest.raises(ModelFileError, match="has GLIGEN's positions and none of its layers"):
        open_model_patch(Checkpoint(torn))
    del tensors["middle_block.1.transformer_blocks.0.fuser.alpha_attn"]
    save_file(tensors, torn)
    with pytest.raises(ModelFileError, match=r"lacks 1 tensors of its network, 'layers\.2\.alpha_attn' first"):
        open_model_patch(Checkpoint(torn)).load(CPU, torch.float32)
