"""Networks that do not fit the honest card: what streams, the bits, the copies, and that nothing waits or is early."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from serve_app.models.kernels.packing import upload, weights_of
from serve_app.models.quantization.eight_bit import EightBitWeight
from serve_app.models.quantization.quantized_linear import QuantizedLinear
from serve_app.models.weights.host_weights import HostWeights
from serve_app.models.weights.pageable_blocks import PageableBlock, Staging
from serve_app.models.weights.streaming import SLOTS, Streaming, streamed_blocks, with_own_weights
from serve_app.models.weights.upload import HostCopies, Ring
from tests.unit.engine.card import CARD, Card
from tests.unit.engine.card_order import COPIES, CardCopies, UnorderedError
from tests.unit.engine.test_card_loading import held

WIDTH, BLOCKS = 32, 40
PIECE = 2**13
"""Bytes of a chunk of pinned memory: blocks lie in parts of two, or of one."""


class Layer(nn.Module):
    """A block: layers called one after another, one of them kept, and a weight of its own that stays on the GPU."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        eight = torch.randn(WIDTH, WIDTH, generator=generator).to(torch.float8_e4m3fn)
        self.kept = QuantizedLinear(EightBitWeight(eight, torch.tensor([0.1])), None)
        self.scale = nn.Parameter(torch.randn(WIDTH, generator=generator))


def through(layer: Layer, x: Tensor) -> Tensor:
    """Return x after a block, whose own weight is read first, and which is not called: as Wan's and LTX's are."""
    scaled = x * layer.scale
    made: Tensor = x + layer.norm(layer.kept(torch.sin(layer.first(scaled))))
    return made


class Deep(nn.Module):
    """Blocks that run in another order than they are listed in, between layers that stay."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.words = nn.Embedding(7, WIDTH)
        self.tail = nn.ModuleList(Layer(generator) for _ in range(BLOCKS // 2))
        self.head = nn.ModuleList(Layer(generator) for _ in range(BLOCKS // 2))
        self.gain = nn.Parameter(torch.tensor(1.5))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 4
        self.requires_grad_(False)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words) * self.gain
        for layer in (*self.head, *self.tail):
            x = through(layer, x)
        return x


ONE = sum(-(-tensor.numel() * tensor.dtype.itemsize // 256) * 256 for tensor in weights_of(Deep().head[0].children()))
"""Bytes of a block."""
STAYS = (7 + BLOCKS) * WIDTH * 4 + 4
"""Of what does not stream."""


def streamed(card: Card, room_bytes: int, copies: Any = None) -> tuple[Deep, Streaming]:
    """Return the network on the card, of which it takes so many bytes."""
    network = Deep()
    host = HostWeights(CARD, 10**7, lambda: copies or CardCopies(card.order), PIECE)
    streaming = host.stream("backbone", room_bytes, network, torch.float32, "deep")
    upload(streaming.resident, torch.float32, Ring(CARD, HostCopies()))
    streaming.allocate_slots()
    return network, streaming


def pieces(streaming: Streaming) -> int:
    """Return the copies that bring every block once: parts of chunks."""
    sizes = [block.nbytes for block in streaming.blocks]
    starts = accumulate(sizes[:-1], initial=0)
    return sum(len(list(streaming.memory.pieces(*end))) for end in zip(starts, sizes, strict=True))


WORDS = torch.tensor([[1, 5, 2], [0, 6, 3]])


class Noted(CardCopies):
    """Notes what it is asked, and how many kernels the card had been asked for by then."""

    def __init__(self, card: Card) -> None:
        super().__init__(card.order)
        self._card = card
        self.asked_for: list[tuple[str, int]] = []

    def follow(self) -> None:
        self.asked_for.append(("copy", self._card.counts.kernels))
        super().follow()

    def lead(self) -> None:
        self.asked_for.append(("use", self._card.counts.kernels))
        super().lead()


@pytest.mark.parametrize("stay", [6, 13, 30])
def test_a_forward_copies_each_block_that_streams_once_and_the_host_waits_for_none(stay: int) -> None:
    blocks = BLOCKS - stay
    with torch.inference_mode():
        wanted = Deep()(WORDS)
        card = Card()
        copies = Noted(card)
        with card.used():
            network, streaming = streamed(card, STAYS + (SLOTS + stay) * ONE, copies)
            assert len(streaming.blocks) == blocks
            words = card.place(WORDS)
            for _ in range(4):
                began = card.counts.copy()
                copies.asked_for = []
                made = network(words)
                counts = card.counts.since(began)
                assert torch.equal(held(made), wanted)
                assert counts.stalls == 0
            assert counts.copies == pieces(streaming)
    assert card.order.early == []
    asked = copies.asked_for
    if blocks % SLOTS:
        # The last block has the first one's slot, which therefore comes once that is done.
        assert [what for what, _ in asked] == ["copy", *["use", "copy"] * (blocks - 1), "use"]
        asked = asked[1:-1]
    # As each block is about to run, the next is on its way before the card is asked for anything of this one.
    assert [what for what, _ in asked] == ["use", "copy"] * (len(asked) // 2)
    assert all(use == copy for (_, use), (_, copy) in zip(asked[::2], asked[1::2], strict=True))


@pytest.mark.parametrize("forgotten", ["follow", "lead"])
def test_a_block_that_is_not_waited_for_is_noticed(forgotten: str, monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card()
    monkeypatch.setattr(CardCopies, forgotten, lambda copies: None)
    with torch.inference_mode(), card.used():
        network, _ = streamed(card, STAYS + 10 * ONE)
        words = card.place(WORDS)
        with pytest.raises(UnorderedError, match=COPIES):
            network(words)


def test_slots_that_go_while_a_copy_is_under_way_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for records in (True, False):
        if not records:
            monkeypatch.setattr(CardCopies, "keep", lambda copies, tensor: None)
        card = Card()
        with torch.inference_mode(), card.used():
            network, streaming = streamed(card, STAYS + 10 * ONE)
            for _ in range(2):
                network(card.place(WORDS))
            streaming.leave()
        assert (card.order.early == []) == records


def test_a_network_that_left_comes_back_and_runs_as_before() -> None:
    card = Card()
    with torch.inference_mode(), card.used():
        network, streaming = streamed(card, STAYS + 10 * ONE)
        before = held(network(card.place(WORDS)))
        streaming.leave()
        assert all(tensor.is_meta for block in streaming.blocks for tensor in weights_of(block.layers))
        streaming.allocate_slots()
        began = card.counts.copy()
        assert torch.equal(held(network(card.place(WORDS))), before)
        # In which order blocks run is known.
        assert card.counts.since(began).copies == pieces(streaming)


def test_networks_that_stream_pin_no_more_of_the_host_than_they_may() -> None:
    card = Card()
    with torch.inference_mode(), card.used():
        host = HostWeights(CARD, BLOCKS * ONE * 3 // 2, lambda: CardCopies(card.order), PIECE)
        first, second = (host.stream("clip", STAYS + 4 * ONE, Deep(), torch.float32, name) for name in "ab")
        assert first.memory.nbytes > second.memory.nbytes > 0
        assert host.nbytes <= BLOCKS * ONE * 3 // 2


def test_a_forward_that_ends_early_costs_copies_and_no_bits() -> None:
    card = Card()
    with torch.inference_mode(), card.used():
        network, streaming = streamed(card, STAYS + 10 * ONE)
        words = card.place(WORDS)
        wanted = held(network(words))
        for number in (3, 20, 0):
            stops = [*network.head, *network.tail][number].norm

            def raises(*_: Any) -> None:
                raise torch.OutOfMemoryError

            handle = stops.register_forward_pre_hook(raises)
            with pytest.raises(torch.OutOfMemoryError):
                network(words)
            handle.remove()
            assert torch.equal(held(network(words)), wanted)
        began = card.counts.copy()
        assert torch.equal(held(network(words)), wanted)
        assert card.counts.since(began).copies == pieces(streaming)


def test_a_layer_of_a_block_has_weights_of_its_own_whatever_is_in_the_slot() -> None:
    plain, card = Deep(), Card()
    with torch.inference_mode(), card.used():
        network, _ = streamed(card, STAYS + 10 * ONE)
        network(card.place(WORDS))
        for ours, theirs in zip(network.modules(), plain.modules(), strict=True):
            own = with_own_weights(ours)
            for a, b in zip(weights_of([own]), weights_of([theirs]), strict=True):
                assert torch.equal(held(a).float(), b.float())


SIZES = st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=4), min_size=1, max_size=30)


@given(SIZES, st.integers(0, 40_000))
def test_what_stays_and_the_slots_are_within_the_room_and_no_more_streams_than_has_to(
    sizes: list[list[int]], room: int
) -> None:
    with torch.device("meta"):
        layers = (nn.Sequential(*(nn.Linear(size, 3) for size in block)) for block in sizes)
        network = nn.Sequential(nn.ModuleList(layers), nn.Embedding(9, 50))
    blocks = streamed_blocks(network, torch.float16, room)
    whole = sum(tensor.numel() for tensor in network.parameters()) * 2
    largest = max((block.nbytes for block in blocks), default=0)
    streams = {id(layer) for block in blocks for layer in block.layers}
    stays = weights_of(layer for layer in network.modules() if id(layer) not in streams)
    taken = sum(tensor.numel() for tensor in stays) * 2 + SLOTS * largest
    most = max(room // 8, *(tensor.numel() * 2 + 512 for tensor in network.parameters()))
    assert largest <= most
    small = 900 + 31 * 4 * (room // 8 // 64 + 8)
    assert taken <= room or taken <= small + SLOTS * most
    assert taken >= min(whole, room - (SLOTS + 2) * most - small)


class Marked(HostCopies):
    """Notes which of its marks are waited for."""

    def __init__(self) -> None:
        self.marks = 0
        self.waited: list[int] = []

    def mark(self) -> Callable[[], object]:
        self.marks += 1
        number = self.marks
        return lambda: self.waited.append(number)


def test_a_buffer_is_filled_again_only_once_the_copies_have_sent_what_it_had() -> None:
    copies = Marked()
    waited = []
    with Card().used():
        staging = Staging(8, 2, copies)
        for number in range(3):
            block = PageableBlock()
            block.add(0, torch.full((4,), float(number)), torch.float16)
            assert staging.filled(number % 2, block).view(torch.float16).tolist() == [number] * 4
            staging.sent(number % 2)
            waited.append([*copies.waited])
        staging.close()
    assert waited == [[], [], [1]]
    assert sorted(copies.waited) == [1, 2, 3]
