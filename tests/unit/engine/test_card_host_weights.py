"""Weights that leave the honest card for host memory and come back: bits, copies, and what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from serve_app.models.eight_bit import EightBitWeight
from serve_app.models.families import AutoencoderKL, ClipText, Sd
from serve_app.models.host_weights import HostWeights, _Chunks
from serve_app.models.loading import Loaded, Loader
from serve_app.models.lora_slots import Composition, Pair, filled
from serve_app.models.packing import weights_of
from serve_app.models.upload import ALIGNED, HostCopies, Ring
from serve_app.models.weights import Weights
from serve_app.store.catalog import Catalog
from serve_app.values import Recipe
from tests.unit.engine.card import CARD, Card, OnCard
from tests.unit.engine.test_card_loading import Network, held, uploaded
from tests.unit.models.sample import random_tensors

COPIES = 27
"""Of a network of test_card_loading: a copy for each of its tensors, whichever way it goes."""
CHUNK = 2**15
BYTES = 2**15
"""Of pinned memory that it takes, in one chunk."""


def part(card: Card, key: str) -> Loaded:
    return Loaded(key, f"backbone {key}", "backbone", uploaded(card, torch.float16))


def host(budget_bytes: int, chunk_bytes: int = CHUNK) -> HostWeights:
    return HostWeights(CARD, budget_bytes, HostCopies(), chunk_bytes)


def bits(network: nn.Module) -> list[Tensor]:
    tensors = [tensor.held if isinstance(tensor, OnCard) else tensor for tensor in weights_of(network)]
    return [tensor.flatten().view(torch.uint8).clone() if tensor.ndim else tensor.clone() for tensor in tensors]


@pytest.mark.parametrize("chunk_bytes", [CHUNK, 2**12, 2**8])
def test_a_part_comes_back_bit_for_bit_by_a_copy_for_each_of_its_tensors(chunk_bytes: int) -> None:
    card, kept = Card(), host(10**6, chunk_bytes)
    loaded = part(card, "a")
    network: Network = loaded.module
    with torch.no_grad(), card.used():
        before = bits(network)
        began = card.counts.copy()
        kept.keep(loaded)
        off = card.counts.since(began)
        assert not any(isinstance(tensor, OnCard) for tensor in weights_of(network))
        began = card.counts.copy()
        assert kept.take("a") is loaded
        back = card.counts.since(began)
        assert all(isinstance(tensor, OnCard) for tensor in weights_of(network))
        after = bits(network)
    assert (off.copies, off.kernels, off.stalls) == (COPIES, 0, 0)
    # What stands for the weight of a layer that keeps it is made there.
    assert (back.copies, back.kernels, back.stalls) == (COPIES, 1, 0)
    for ours, earlier in zip(after, before, strict=True):
        assert torch.equal(ours, earlier)
    assert network.again is network.large
    assert isinstance(network.kept.kept, EightBitWeight)
    assert (network.kept.weight.device, network.kept.weight.dtype) == (CARD, torch.float16)
    assert (kept.nbytes, kept.hits, kept.misses) == (0, 1, 0)


def test_what_was_evicted_longest_ago_goes_once_the_bound_is_reached() -> None:
    card, kept = Card(), host(2 * BYTES)
    with torch.no_grad(), card.used():
        for key in "abc":
            kept.keep(part(card, key))
            assert kept.nbytes <= 2 * BYTES
        assert kept.nbytes == 2 * BYTES
        assert [kept.take(key) is None for key in "abc"] == [True, False, False]
    assert (kept.nbytes, kept.hits, kept.misses) == (0, 2, 1)


@pytest.mark.parametrize("budget_bytes", [0, BYTES - 1])
def test_a_part_that_has_no_room_by_itself_is_not_copied(budget_bytes: int) -> None:
    card, kept = Card(), host(budget_bytes)
    with torch.no_grad(), card.used():
        loaded = part(card, "a")
        began = card.counts.copy()
        kept.keep(loaded)
        assert card.counts.since(began).copies == 0
        assert kept.take("a") is None
    assert kept.nbytes == 0


def test_slots_of_loras_are_not_carried_along() -> None:
    card, kept = Card(), host(10**6)
    loaded = part(card, "a")
    layer = loaded.module.kept
    with torch.no_grad(), card.used():
        pair = Pair(card.place(torch.ones(2, 32).half()), card.place(torch.ones(48, 2).half()))
        composition = Composition("one", [filled(layer, [(1, pair)])])
        composition.use()
        composition.leave()
        assert layer._forward_hooks
        kept.keep(loaded)
    assert not layer._forward_hooks
    assert "lora_slot" not in layer.__dict__


def test_a_network_with_other_tensors_on_the_card_is_not_kept() -> None:
    card, kept = Card(), host(10**6)
    loaded = part(card, "a")
    loaded.module.table = card.place(torch.ones(3))
    with torch.no_grad(), card.used():
        kept.keep(loaded)
        assert kept.take("a") is None


def test_of_two_models_that_take_turns_no_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    unet = Sd((32,), (1,), (1,), 1, 64)
    (tmp_path / "checkpoints").mkdir()
    tensors = random_tensors(unet) | random_tensors(AutoencoderKL((32, 32), 1, 4, 3, True))
    for name in "ab":
        save_file(tensors | random_tensors(ClipText(1, 64, 64, 77)), tmp_path / "checkpoints" / f"{name}.safetensors")
    recipes = [Recipe("backbone", "checkpoints", f"{name}.safetensors") for name in "ab"]
    card, opened = Card(), []
    one = sum(tensor.numel() for tensor in random_tensors(unet).values()) * 4
    settings: dict[str, Any] = {"dtype": "fp32", "vae_dtype": "fp32"}
    weights = Weights(Catalog(tmp_path), CARD, **settings, budget_bytes=one, host_bytes=10**9)
    weights._host = HostWeights(CARD, 10**9, HostCopies())
    weights._loader._ring = Ring(CARD, HostCopies())
    load = Loader.load

    def counted(self: Loader, *args: Any) -> Loaded:
        opened.append(args[0].name)
        return load(self, *args)

    monkeypatch.setattr(Loader, "load", counted)
    found: dict[str, list[list[Tensor]]] = {recipe.name: [] for recipe in recipes}
    with torch.no_grad(), card.used():
        for recipe in recipes * 3:
            network: Any = weights.backbone(recipe).network
            found[recipe.name].append([held(parameter).clone() for parameter in network.module.parameters()])
            del network
    assert opened == ["a.safetensors", "b.safetensors"]
    counters = weights.counters
    assert (counters.loads, counters.evictions, counters.host_hits, counters.host_misses) == (6, 5, 4, 2)
    assert counters.host_bytes > 0
    for first, *later in found.values():
        assert all(torch.equal(a, b) for other in later for a, b in zip(first, other, strict=True))


SIZES = st.lists(st.integers(0, 600), max_size=40)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.sampled_from([64, 256, 1024]))
def test_no_two_tensors_share_a_byte_and_little_memory_is_lost(sizes: list[int], chunk_bytes: int) -> None:
    chunks = _Chunks(sizes, chunk_bytes)
    chunks._memory = [torch.zeros(size, dtype=torch.uint8) for size in chunks.sizes]
    for size in sizes:
        place = chunks.place(torch.empty(size, dtype=torch.uint8))
        assert len(place) == size
        assert place.storage_offset() % ALIGNED == 0
        place += 1
    assert sum(int(memory.sum()) for memory in chunks._memory) == sum(sizes)
    assert all(memory.max() <= 1 for memory in chunks._memory)
    # Powers of two, of which at most one chunk is less than half full, and each tensor begins at a multiple.
    assert chunks.nbytes <= 2 * (sum(sizes) + ALIGNED * len(sizes)) + 2 * chunk_bytes


PARTS = st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=12)


@settings(max_examples=15, deadline=None)
@given(PARTS, st.integers(0, 4))
def test_whatever_comes_and_goes_the_bound_is_kept_and_what_fits_is_found(
    moves: list[tuple[int, bool]], room: int
) -> None:
    card, kept = Card(), host(room * BYTES)
    on_card: dict[int, Loaded] = {}
    there: list[int] = []
    with torch.no_grad(), card.used():
        for key, goes in moves:
            if goes:
                loaded = on_card.pop(key, None)
                if loaded is None and key in there:
                    continue
                kept.keep(loaded or part(card, str(key)))
                there = [*there, key][-room:] if room else []
            else:
                found = kept.take(str(key))
                assert (found is not None) == (key in there)
                if found is not None:
                    on_card[key] = found
                    there.remove(key)
            assert kept.nbytes == len(there) * BYTES <= room * BYTES
