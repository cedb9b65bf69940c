"""LoRAs in slots, on the honest card: as merged weights answer, two kernels a layer, and nothing patched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import ref

import pytest
import torch
from torch import Tensor, nn

from serve_app.models.lora.forward import with_loras
from serve_app.models.lora.layers import LoraSet
from serve_app.models.lora.slots import slot_rank
from tests.unit.engine.card import CARD, Card
from tests.unit.models.lora.test_forward import OTHER, PIECES, STACKS, STYLE, inputs, merged_network, network

THIN_STACKS = {"style": [(STYLE, 0.8)], "other": [(OTHER, 1.0)], "stack": [(STYLE, 0.8), (OTHER, -0.5)]}
THIN_LAYERS = 4


class OnCard:
    """The network on a card with sets of LoRAs. counted: kernels in its latest forward."""

    def __init__(self, stacks: Any, dtype: torch.dtype = torch.float32) -> None:
        self.card = Card()
        with torch.no_grad(), self.card.used():
            self.module: nn.Module = self.card.settle(network(dtype))
        self.sets: dict[Any, LoraSet] = {name: LoraSet(name, self.module, stack) for name, stack in stacks.items()}
        self.counted = 0

    def __call__(self, pieces: Sequence[tuple[int, Any]], dtype: torch.dtype = torch.float32) -> Tensor:
        x = inputs(sum(rows for rows, _ in pieces), dtype)
        with torch.inference_mode(), self.card.used():
            placed = self.card.place(x)
            with with_loras([(rows, self.sets.get(name)) for rows, name in pieces]):
                before = self.card.counts.copy()
                made: Any = self.module(placed)
                counts = self.card.counts.since(before)
            assert counts.stalls == 0
            self.counted = counts.kernels
            numbers: Tensor = made.held
        return numbers.float()


def error(
    together: Tensor, pieces: Sequence[tuple[int, Any]], stacks: Any, dtype: torch.dtype = torch.float32
) -> float:
    x, plain, errors, start = inputs(len(together), dtype).float(), network(), [0.0], 0
    with torch.inference_mode():
        for rows, name in pieces:
            expected = merged_network(plain, stacks.get(name, []))(x[start : start + rows])
            errors.append(float((together[start : start + rows] - expected).norm() / expected.norm()))
            start += rows
    return max(errors)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.float16, 2e-3)])
def test_rows_of_many_sets_answer_as_each_with_merged_weights(dtype: torch.dtype, most: float) -> None:
    shared = OnCard(STACKS, dtype)
    assert error(shared(PIECES, dtype), PIECES, STACKS, dtype) < most


@pytest.mark.parametrize(
    "pieces",
    [
        [(2, "style")],
        [(2, "style"), (2, "other")],
        [(1, "other"), (3, None), (2, "stack"), (1, "style"), (2, "other")],
    ],
)
def test_a_forward_takes_two_kernels_more_a_layer_whatever_the_number_of_sets(pieces: list[tuple[int, Any]]) -> None:
    shared = OnCard(THIN_STACKS)
    shared([(sum(rows for rows, _ in pieces), None)])
    bare = shared.counted
    for _ in range(12):
        assert error(shared(pieces), pieces, THIN_STACKS) < 1e-5
        assert shared.counted == bare + 2 * THIN_LAYERS
    assert not any(layer.can_unmerge for loras in shared.sets.values() for layer in loras.layers.values())


@pytest.mark.parametrize("more", [1, 3])
def test_a_layer_that_sees_rows_once_more_changes_them_as_their_sets_say(more: int) -> None:
    shared, plain = OnCard(THIN_STACKS), network()
    names = ["style", "other", "other", *["style", "other", "other"][:more]]
    x = torch.randn(len(names), 6, generator=torch.Generator().manual_seed(5))
    first: Any = shared.module.first
    with torch.inference_mode(), shared.card.used():
        with with_loras([(1, shared.sets["style"]), (2, shared.sets["other"])]):
            made = first(shared.card.place(x)).held
        for row, name in enumerate(names):
            expected = merged_network(plain, THIN_STACKS[name]).first(x[row])
            torch.testing.assert_close(made[row], expected, rtol=1e-5, atol=1e-5)


def test_no_forward_is_patched_and_rows_without_loras_are_as_before() -> None:
    shared = OnCard(THIN_STACKS)
    plain = shared([(3, None)])
    patched = []
    for layer in shared.module.modules():
        layer.register_forward_pre_hook(lambda layer, _: patched.append("forward" in vars(layer)))
    shared([(2, "style"), (1, "other")])
    assert patched
    assert not any(patched)
    assert torch.equal(shared([(3, None)]), plain)


def test_slots_stay_where_they_are_as_their_rows_change_and_count_as_memory_of_a_set() -> None:
    shared = OnCard(THIN_STACKS)
    style, other = shared.sets["style"], shared.sets["other"]
    shared([(2, "style"), (2, "other")])
    first = style.slots
    assert first is not None
    assert style.nbytes == style.needed_bytes + first.nbytes
    for pieces in ([(3, "other"), (1, "style")], [(2, "style"), (1, "stack")], [(2, "style"), (2, None)]):
        assert error(shared(pieces), pieces, THIN_STACKS) < 1e-5
        keeper = shared.sets[pieces[0][1]]
        assert keeper.slots is first
        assert sum(one.slots is first for one in shared.sets.values()) == 1
    assert other.nbytes == other.needed_bytes
    style.unmerge()
    assert style.nbytes == style.needed_bytes


def test_more_rows_have_slots_of_their_own_and_those_for_fewer_go() -> None:
    shared = OnCard(THIN_STACKS)
    shared([(2, "style"), (2, "other")])
    gone = ref(shared.sets["style"].slots)
    pieces = [(3, "other"), (2, "style")]
    assert error(shared(pieces), pieces, THIN_STACKS) < 1e-5
    assert gone() is None
    assert shared.sets["style"].slots is None


def test_only_the_rows_that_changed_are_copied() -> None:
    shared = OnCard(THIN_STACKS)
    kernels = []
    with torch.inference_mode(), shared.card.used():
        for loras in shared.sets.values():
            assert list(loras.prepared()) == []
    for pieces in ([(2, "style"), (2, "other")], [(2, "style"), (2, "stack")], [(2, "style"), (2, "stack")]):
        before = shared.card.counts.kernels
        shared(pieces)
        kernels.append(shared.card.counts.kernels - before - shared.counted)
    # Slots are made of zeros, and rows emptied where a rank is lower than theirs and filled, by a kernel each.
    assert kernels == [2 * THIN_LAYERS + 2, 2, 0]


def test_slots_have_few_ranks_so_that_sets_of_about_one_size_have_them_alike() -> None:
    assert [slot_rank(rank) for rank in (1, 8, 9, 16, 33)] == [8, 8, 16, 16, 64]


def test_weights_of_a_card_are_known_by_where_they_are() -> None:
    assert next(OnCard(THIN_STACKS).module.parameters()).device == CARD
