"""The rows of a piece as pieces of their own: each is told what it was told in the batch."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from serve_app.models.backbone import RecipeBackbone
from serve_app.models.control.control import ActiveControl, Hint
from serve_app.models.families.dit.flux import FluxInputs
from serve_app.models.families.shared.attention_bias import AttentionBias
from serve_app.models.families.unet.unet import UnetInputs
from serve_app.models.network import LoadedNetwork
from serve_app.models.split_batch import split_batch
from serve_app.recipe.layers import HyperTile
from serve_app.recipe.pack_functions import PackFunctions
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.training import Discrete
from serve_app.sampling.forward import Piece, denoise
from serve_app.sampling.guidance.layers import AttentionMap, Drawn, WithoutAttention
from serve_app.values import Control
from tests.unit.engine.mixes import TinyBackbone
from tests.unit.models.control_nets import ARCHITECTURE, backbone

ROWS = 3


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def piece(inputs: Any, **changes: Any) -> Piece:
    return Piece(cast(Any, TinyBackbone()), normal(ROWS, 4, 4, 4), 1.0, inputs, **changes)


def control(images: int) -> ActiveControl:
    hint = torch.zeros(images, 8, 8, 3)
    recipe = Recipe("controlnet", "controlnet", "a")
    return ActiveControl(cast(Any, None), Control(recipe, hint, 1.0), Hint(hint), 10.0, 0.0)


def test_each_row_has_its_part_of_the_batch_inputs():
    bias = AttentionBias(normal(ROWS, 6, 6), 2, (2, 2))
    told = FluxInputs(normal(ROWS, 2, 5), normal(ROWS, 7), None, None, (normal(ROWS, 4, 2, 2),), "index", (), bias)
    rows: list[Any] = [row.inputs for row in split_batch(piece(told))]
    for name in ("text", "pooled"):
        assert torch.equal(torch.cat([getattr(row, name) for row in rows]), getattr(told, name))
    assert torch.equal(torch.cat([row.references[0] for row in rows]), told.references[0])
    assert torch.equal(torch.cat([row.bias.added for row in rows]), bias.added)
    assert [(len(row.text), row.bias.size, row.method) for row in rows] == [(1, (2, 2), "index")] * ROWS


def test_rows_under_one_hint_keep_it_and_what_was_read_of_it():
    one = control(1)
    rows: list[Any] = [row.inputs for row in split_batch(piece(UnetInputs(normal(ROWS, 2, 5), controls=(one,))))]
    assert [row.controls[0] is one for row in rows] == [True] * ROWS


@pytest.mark.parametrize(
    "given",
    [
        {"inputs": UnetInputs(normal(ROWS, 2, 5), controls=(control(2),))},
        {"layers": (AttentionMap(),)},
        {"layers": (WithoutAttention(), Drawn(HyperTile(256, 2, 0, False), torch.Generator()))},
        {"tie": object()},
    ],
)
def test_rows_that_depend_on_each_other_stay_together(given: dict[str, Any]) -> None:
    whole = piece(**{"inputs": UnetInputs(normal(ROWS, 2, 5)), **given})
    assert split_batch(whole) == [whole]


def test_rows_that_functions_of_node_packs_see_stay_together() -> None:
    network = LoadedNetwork("unet", ARCHITECTURE, backbone(), Discrete())
    told = UnetInputs(normal(ROWS, 7, 16))
    plain = Piece(RecipeBackbone(network), normal(ROWS, 4, 8, 8), 1.0, told)
    assert len(plain.backbone.apart(plain)) == ROWS
    seen = Piece(RecipeBackbone(network, functions=(PackFunctions(network={}),)), plain.x, 1.0, told)
    assert seen.backbone.apart(seen) == [seen]


def test_a_network_answers_rows_apart_as_it_does_the_batch() -> None:
    network = LoadedNetwork("unet", ARCHITECTURE, backbone(), Discrete())
    whole = Piece(RecipeBackbone(network), normal(ROWS, 4, 8, 8), 1.0, UnetInputs(normal(ROWS, 7, 16)))
    rows = [denoise([row])[0] for row in whole.backbone.apart(whole)]
    assert torch.allclose(torch.cat(rows), denoise([whole])[0], atol=1e-5)
