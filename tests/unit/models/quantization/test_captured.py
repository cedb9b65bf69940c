"""Layers of every kind of quantized weight in a forward on a card: captured as a graph, and nothing waits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from serve_app.engine.timeline import timeline_of
from serve_app.models.forward import EAGER
from serve_app.models.kernels.cuda_graphs import GraphRecorder
from serve_app.models.quantization.block_scales import Mxfp8Weight, Nvfp4Weight
from serve_app.models.quantization.eight_bit import EightBitWeight
from serve_app.models.quantization.four_bit_codes import CodedWeight
from serve_app.models.quantization.ggml_blocks import TYPES, BlockWeight
from serve_app.models.quantization.half_precision_text import SixteenBitWeight
from serve_app.models.quantization.quantized_linear import QuantizedLinear, QuantizedWeight
from tests.unit.engine.card import CARD, Card
from tests.unit.engine.card_driver import GB, driven

OUT, INSIDE = 32, 256


def random_bytes(*shape: int) -> torch.Tensor:
    return torch.randint(0, 120, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def eight_bits(*shape: int) -> torch.Tensor:
    return random_bytes(*shape).view(torch.float8_e4m3fn)


KINDS: dict[str, QuantizedWeight] = {
    "fp8": EightBitWeight(eight_bits(OUT, INSIDE), torch.tensor([0.5])),
    "nvfp4": Nvfp4Weight(random_bytes(OUT, INSIDE // 2), random_bytes(OUT, INSIDE // 16), torch.tensor(0.5)),
    "mxfp8": Mxfp8Weight(eight_bits(OUT, INSIDE), random_bytes(OUT, INSIDE // 32)),
    "w4a8": CodedWeight(
        random_bytes(OUT, INSIDE // 2), eight_bits(OUT, INSIDE // 16), torch.ones(OUT, 1), 16, torch.linspace(-1, 1, 16)
    ),
    "sixteen bits": SixteenBitWeight(torch.ones(OUT, INSIDE, dtype=torch.float16)),
    **{name: BlockWeight(random_bytes(OUT, INSIDE // t.size * t.nbytes), name) for name, t in TYPES.items()},
}


@pytest.fixture
def card() -> Iterator[Card]:
    card = Card(total_bytes=24 * GB)
    assert card.driver is not None
    with driven(card.driver), card.used(), timeline_of(CARD).enqueueing(), torch.inference_mode():
        yield card


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_captured_and_gives_what_a_cpu_gives(card: Card, kind: str) -> None:
    bias = torch.nn.Parameter(torch.zeros(OUT), requires_grad=False)
    plain = QuantizedLinear(KINDS[kind], bias)
    x = torch.randn(3, INSIDE, generator=torch.Generator().manual_seed(2))
    wanted = plain(x)
    layer = QuantizedLinear(KINDS[kind].sent(lambda tensor: tensor.to(CARD)), torch.nn.Parameter(bias.to(CARD), False))
    on_card = x.to(CARD)
    for _ in range(EAGER):
        # Tables that all layers share are made in the first forward, which is no recorded one.
        layer(on_card)
    counts = card.counts.copy()
    graph = GraphRecorder(CARD).record(lambda: [layer(on_card)])
    assert (card.counts.since(counts).stalls, card.counts.since(counts).copies) == (0, 0)
    graph.replay()
    assert torch.equal(graph.outputs[0].cpu(), wanted)
