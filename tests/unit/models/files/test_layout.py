"""Where tensors of a file go: whole, renamed, in parts, in halves that change places."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serve_app.models.files.layout import Place, Table, placed, places, reverse, translate

HEAD, MLP = 3, 5
TABLE: Table = {
    "blocks.0": "layers.0",
    "blocks.0.linear1": (
        Place("layers.0.to_q", rows=(0, HEAD)),
        Place("layers.0.to_k", rows=(HEAD, 2 * HEAD)),
        Place("layers.0.to_v", rows=(2 * HEAD, 3 * HEAD)),
        Place("layers.0.mlp", rows=(3 * HEAD, 3 * HEAD + MLP)),
    ),
    "blocks.0.norm.scale": "layers.0.norm.weight",
    "final.modulation": (Place("norm_out.linear", swapped=True),),
    "patch.weight": (Place("patch.weight", shape=(4, 6)),),
    "text_projection": (Place("projection.weight", transposed=True),),
}


def test_a_tensor_goes_where_the_longest_known_beginning_of_its_name_says():
    assert places("blocks.0.linear2.weight", TABLE) == (Place("layers.0.linear2.weight"),)
    assert places("blocks.0.norm.scale", TABLE) == (Place("layers.0.norm.weight"),)
    assert places("blocks.1.linear2.weight", TABLE) == ()


@pytest.mark.parametrize("leaf", ["weight", "bias"])
def test_a_fused_layers_tensors_go_to_several_places_in_unequal_parts(leaf):
    fused = torch.arange(3 * HEAD + MLP).float()
    fused = fused[:, None].expand(-1, 2) if leaf == "weight" else fused
    parts = {place.name: placed(fused, place) for place in places(f"blocks.0.linear1.{leaf}", TABLE)}
    assert list(parts) == [f"layers.0.{name}.{leaf}" for name in ("to_q", "to_k", "to_v", "mlp")]
    assert [len(part) for part in parts.values()] == [HEAD, HEAD, HEAD, MLP]
    assert torch.equal(torch.cat(list(parts.values())), fused)


def test_halves_that_change_places_do_so_along_the_rows():
    [place] = places("final.modulation.weight", TABLE)
    assert place.name == "norm_out.linear.weight"
    shift_and_scale = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    assert placed(shift_and_scale, place).flatten().tolist() == [3, 4, 1, 2]


def test_a_tensor_can_be_turned_and_reshaped():
    assert placed(torch.zeros(4, 2, 3), *places("patch.weight", TABLE)).shape == (4, 6)
    matrix = torch.randn(2, 3)
    assert torch.equal(placed(matrix, *places("text_projection", TABLE)), matrix.t())


def test_of_a_fused_tensors_part_the_halves_are_its_own():
    place = Place("a", rows=(2, 6), swapped=True, shape=(2, 2))
    assert placed(torch.arange(8), place).tolist() == [[4, 5], [2, 3]]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_parts_that_follow_each_other_are_all_of_the_tensor(sizes):
    ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
    tensor = torch.randn(ends[-1], 2)
    parts = [placed(tensor, Place("", rows=(a, b))) for a, b in pairwise(ends)]
    assert torch.equal(torch.cat(parts), tensor)


def test_names_go_back_where_a_tensor_goes_as_it_is():
    back = reverse(TABLE)
    assert translate("layers.0.norm.weight", back) == "blocks.0.norm.scale"
    assert translate("layers.0.linear2.bias", back) == "blocks.0.linear2.bias"
    assert translate("norm_out.linear.weight", back) is None
