"""Weights that leave the honest card for host memory and come back: bits, copies, and the memory of either."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from serve_app.errors import DeviceMemoryError
from serve_app.models.families import AutoencoderKL, ClipText, Sd
from serve_app.models.kernels.packing import weights_of
from serve_app.models.lora.slots import Pair, Slots, Slotted
from serve_app.models.quantization.eight_bit import EightBitWeight
from serve_app.models.weights.host_weights import HostWeights
from serve_app.models.weights.loading import Loaded
from serve_app.models.weights.needs import STREAMED
from serve_app.models.weights.pinned_memory import ALIGNED, Layout
from serve_app.models.weights.streaming import with_own_weights
from serve_app.models.weights.upload import HostCopies, Ring
from serve_app.models.weights.weights import Weights
from serve_app.recipe.recipe import Part, Recipe
from serve_app.recipe.weights import Merge, Share
from serve_app.store.models.catalog import Catalog
from tests.examples import fewer
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
    return HostWeights(CARD, budget_bytes, HostCopies, chunk_bytes, Ring(CARD, HostCopies(), chunk_bytes))


def bits(network: nn.Module) -> list[Tensor]:
    tensors = [tensor.held if isinstance(tensor, OnCard) else tensor for tensor in weights_of(network.modules())]
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
        assert not any(isinstance(tensor, OnCard) for tensor in weights_of(network.modules()))
        began = card.counts.copy()
        assert kept.take("a") is loaded
        back = card.counts.since(began)
        assert all(isinstance(tensor, OnCard) for tensor in weights_of(network.modules()))
        after = bits(network)
    assert (off.copies, off.kernels, off.stalls) == (COPIES, 0, 0)
    # What stands for the weight of a layer that keeps it is made there.
    assert (back.copies, back.kernels, back.stalls) == (COPIES, 1, 0)
    for ours, earlier in zip(after, before, strict=True):
        assert torch.equal(ours, earlier)
    assert network.again is network.large
    assert isinstance(network.kept.quantized, EightBitWeight)
    assert (network.kept.weight.device, network.kept.weight.dtype) == (CARD, torch.float16)
    assert (kept.hits, kept.misses) == (1, 0)


def test_a_part_that_was_evicted_before_leaves_at_once_as_its_copy_is_there() -> None:
    card, kept = Card(), host(10**6)
    loaded = part(card, "a")
    with torch.no_grad(), card.used():
        before = bits(loaded.module)
        kept.keep(loaded)
        copied, nbytes = kept.copied_bytes, kept.nbytes
        for _ in range(3):
            assert kept.take("a") is loaded
            began = card.counts.copy()
            assert kept.keep(loaded)
            off = card.counts.since(began)
            assert (off.copies, off.kernels, off.stalls) == (0, 0, 0)
        assert (kept.copied_bytes, kept.nbytes) == (copied, nbytes)
        kept.take("a")
        after = bits(loaded.module)
    assert all(torch.equal(ours, earlier) for ours, earlier in zip(after, before, strict=True))


def test_of_parts_that_no_file_has_those_that_do_not_fit_are_not_kept() -> None:
    card, kept = Card(), host(2 * BYTES)
    with torch.no_grad(), card.used():
        assert [kept.keep(part(card, key)) for key in "abc"] == [True, True, False]
        assert kept.nbytes == 2 * BYTES
        assert [kept.take(key) is None for key in "abc"] == [False, False, True]
        # What is on the GPU again is worth less than what is not.
        assert kept.keep(part(card, "d"))
        assert kept.take("d") is not None
    assert (kept.hits, kept.misses) == (3, 1)


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
        slots = Slots([Slotted("kept", layer, 8, pair)], 1)
        slots.use(1)
        slots.leave()
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


UNET = Sd((32,), (1,), (1,), 1, 64)
PARTS: tuple[Part, ...] = ("backbone", "vae", "clip")
ONE = sum(tensor.numel() for tensor in random_tensors(UNET).values()) * 4
"""Bytes of a backbone."""


class Loads:
    """Weights of files "a" and "b" on the honest card. opened: what was read of files, in order."""

    def __init__(self, root: Path, budget_bytes: int, host_bytes: int) -> None:
        self.card = Card()
        # Held, so that nothing of these weights comes to lie where it is.
        self.earlier = storages_on_card()
        self.opened: list[str] = []
        settings: dict[str, Any] = {"dtype": "fp32", "vae_dtype": "fp32"}
        self.weights = Weights(Catalog(root), CARD, **settings, budget_bytes=budget_bytes)
        loader: Any = self.weights.loader
        loader.ring, load = Ring(CARD, HostCopies(), 2**16), loader.load
        self.host = self.weights.host = HostWeights(CARD, host_bytes, HostCopies, 2**16, loader.ring)

        def counted(recipe: Recipe, *others: Any) -> Loaded:
            self.opened.append(recipe.name)
            loaded: Loaded = load(recipe, *others)
            return loaded

        loader.load = counted

    def bits(self, part: Part, name: str, *patches: Any) -> list[Tensor]:
        """Return the weights of a part, loaded if it is absent."""
        with torch.no_grad(), self.card.used():
            recipe = Recipe(part, "checkpoints", f"{name}.safetensors", patches)
            *_, key = self.weights.needs.of(recipe).nbytes
            with self.weights.open(recipe):
                resident = self.weights.residency.resident[key]
            # All at once: what has gone may have had the place of what comes, by which tensors are told apart.
            layers = [with_own_weights(layer) for layer in resident.loaded.module.modules()]
            return [held(tensor).clone() for tensor in weights_of(layers)]

    def live_bytes(self) -> int:
        """Return how much memory of the card tensors of its weights have, whoever has them."""
        found = storages_on_card()
        mine = found.keys() - self.earlier.keys()
        return sum(found[place].nbytes() for place in mine) - loads_landing(self)


def storages_on_card() -> dict[int, torch.UntypedStorage]:
    """Return the memory of all tensors on a card, by its address."""
    gc.collect()
    found = (tensor.held.untyped_storage() for tensor in gc.get_objects() if type(tensor) is OnCard)
    return {storage.data_ptr(): storage for storage in found}


def loads_landing(loads: Loads) -> int:
    """Return what the ring has on the card, through which weights come from files."""
    ring: Any = loads.weights.loader.ring
    return 0 if ring.landing is None else int(ring.landing.numel())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    (root / "checkpoints").mkdir()
    for seed, name in enumerate("ab"):
        tensors = random_tensors(UNET) | random_tensors(AutoencoderKL((32, 32), 1, 4, 3, True))
        tensors |= random_tensors(ClipText(1, 64, 64, 77))
        changed = {key: tensor + seed for key, tensor in tensors.items()}
        save_file(changed, root / "checkpoints" / f"{name}.safetensors")
    return root


def test_of_two_models_that_take_turns_no_file_is_read_again(root: Path) -> None:
    loads = Loads(root, ONE, 10**9)
    found = [loads.bits("backbone", name) for name in "ab" * 3]
    assert loads.opened == ["a.safetensors", "b.safetensors"]
    counters = loads.weights.counters
    assert (counters.loads, counters.evictions, counters.host_hits, counters.host_misses) == (6, 5, 4, 2)
    assert 0 < counters.host_bytes == loads.host.nbytes
    for number, again in enumerate(found[2:], 2):
        assert all(torch.equal(a, b) for a, b in zip(again, found[number % 2], strict=True))


@pytest.mark.parametrize("share", [0.3, 0.8, 1.9])
def test_of_two_models_that_take_turns_as_much_returns_from_host_memory_as_fits(root: Path, share: float) -> None:
    loads = Loads(root, ONE, int(share * ONE))
    found = [loads.bits("backbone", name) for name in "ab" * 3]
    # What is not in host memory is read from the file, and nothing is loaded anew.
    assert loads.opened == ["a.safetensors", "b.safetensors"]
    assert loads.weights.counters.host_hits == 4
    for number, again in enumerate(found[2:], 2):
        assert all(torch.equal(a, b) for a, b in zip(again, found[number % 2], strict=True))
    assert share * ONE - 2 * 2**16 <= loads.host.nbytes <= share * ONE
    copied = loads.host.copied_bytes
    for name in "ab":
        loads.bits("backbone", name)
    assert loads.host.copied_bytes == copied


def test_merged_weights_return_as_they_were(root: Path) -> None:
    loads = Loads(root, ONE, 3 * ONE)
    merge = Merge(Recipe("backbone", "checkpoints", "b.safetensors"), (Share("", 0.5, 0.5),))
    found = [loads.bits("backbone", "a", *patches) for patches in ((merge,), (), (merge,), (), (merge,))]
    assert len(loads.opened) == 2
    assert not all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    for again in (found[2], found[4]):
        assert all(torch.equal(a, b) for a, b in zip(again, found[0], strict=True))


ASKED = st.lists(st.tuples(st.sampled_from(PARTS), st.sampled_from("ab")), min_size=2, max_size=7)


@fewer(10)
@given(ASKED, st.integers(0, 2 * ONE), st.integers(0, 3 * ONE), st.booleans())
def test_no_sequence_of_loads_exceeds_the_memory_of_card_or_host(
    root: Path, asked: list[tuple[Part, str]], budget: int, host_bytes: int, releases: bool
) -> None:
    loads, plain = Loads(root, budget, host_bytes), Loads(root, 10**9, 0)
    expected = {of: plain.bits(*of) for of in dict.fromkeys(asked)}
    # With the memory that its copies land in, it would count among that of the other.
    with torch.no_grad(), plain.card.used():
        plain.weights.release()
    del plain
    for part, name in asked:
        try:
            found = loads.bits(part, name)
        except DeviceMemoryError:
            # What streams needs host memory, of which it takes a chunk less than it has to at most.
            nbytes = sum(tensor.nbytes for tensor in expected[part, name])
            assert part in STREAMED
            assert nbytes > max(budget, host_bytes - 2**16)
            found = expected[part, name]
        assert all(torch.equal(a, b) for a, b in zip(found, expected[part, name], strict=True))
        assert loads.host.nbytes <= host_bytes
        # One part alone may be larger, where it does not stream, or its slots alone are.
        resident_bytes = loads.weights.resident_bytes
        assert resident_bytes <= budget or len(loads.weights.resident()) == 1
        assert loads.live_bytes() == resident_bytes
        if releases:
            with torch.no_grad(), loads.card.used():
                loads.weights.release()
            assert loads.live_bytes() == loads.weights.resident_bytes == 0
    assert len(loads.opened) == loads.weights.counters.host_misses or not host_bytes


SIZES = st.lists(st.tuples(st.integers(0, 600), st.booleans()), max_size=40)


@given(SIZES, st.sampled_from([64, 256, 1024]))
def test_no_two_tensors_share_a_byte_and_little_memory_is_lost(
    tensors: list[tuple[int, bool]], chunk_bytes: int
) -> None:
    sizes, required = [size for size, _ in tensors], [needed for _, needed in tensors]
    layout = Layout(sizes, required, chunk_bytes)
    chunks = [torch.zeros(size, dtype=torch.uint8) for size in layout.sizes]
    for number, size in enumerate(sizes):
        place = layout.view(chunks, number, torch.empty(size, dtype=torch.uint8))
        assert len(place) == size
        assert place.storage_offset() % ALIGNED == 0
        assert layout.chunk(number) < layout.first or not required[number]
        place += 1
    assert sum(int(memory.sum()) for memory in chunks) == sum(sizes)
    assert all(memory.max() <= 1 for memory in chunks)
    # Powers of two, of which at most one chunk is less than half full, and each tensor begins at a multiple.
    assert sum(layout.sizes) <= 2 * (sum(sizes) + ALIGNED * len(sizes)) + 2 * chunk_bytes


MOVES = st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=12)


@fewer(5)
@given(MOVES, st.integers(0, 4))
def test_whatever_comes_and_goes_the_bound_is_kept_and_what_was_kept_is_found(
    moves: list[tuple[int, bool]], room: int
) -> None:
    card, kept = Card(), host(room * BYTES)
    on_card: dict[int, Loaded] = {}
    there: set[int] = set()
    with torch.no_grad(), card.used():
        for key, goes in moves:
            if goes and key not in there:
                loaded = on_card.pop(key, None) or part(card, str(key))
                there |= {key} if kept.keep(loaded) else set()
            elif not goes and (found := kept.take(str(key))) is not None:
                on_card[key] = found
                there.remove(key)
            assert kept.nbytes <= room * BYTES
            assert len(there) <= room
        assert room == 0 or not moves or kept.nbytes > 0 or not any(goes for _, goes in moves)
