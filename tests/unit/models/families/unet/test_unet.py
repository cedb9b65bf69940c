"""How the rows of many jobs become one forward, and that a card can record it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as attention

from serve_app.models.families import Sd, Sdxl
from serve_app.models.families.family import Rows
from serve_app.models.families.unet.unet import Unet, stack_contexts
from serve_app.models.forward import EAGER, ROW_BUCKETS, Replays
from serve_app.models.network import LoadedNetwork
from serve_app.recipe.training import Discrete
from serve_app.sampling.forward import Canvas
from tests.unit.engine.card import CARD, Card
from tests.unit.models.recorder import CardRecorder


def test_contexts_of_one_length_are_stacked_without_a_mask():
    stacked, mask = stack_contexts([torch.ones(2, 3, 4), torch.zeros(1, 3, 4)])
    assert stacked.shape == (3, 3, 4)
    assert mask is None


def test_unequal_contexts_are_repeated_to_a_common_length_which_leaves_attention_as_it_is():
    generator = torch.Generator().manual_seed(1)
    query, short, longer = (torch.randn(1, n, 8, generator=generator) for n in (5, 4, 6))
    stacked, mask = stack_contexts([short, longer])
    assert stacked.shape == (2, 12, 8)
    assert mask is None
    for one, own in zip(stacked.split(1), (short, longer), strict=True):
        assert torch.allclose(attention(query, one, one), attention(query, own, own), atol=1e-6)


def test_contexts_whose_common_length_is_too_long_are_padded_to_the_longest_and_masked():
    stacked, mask = stack_contexts([torch.ones(2, 2, 4), torch.ones(1, 5, 4), torch.ones(1, 4, 4)])
    assert mask is not None
    assert mask.sum(dim=1).tolist() == [2, 2, 5, 4]
    assert torch.equal(stacked.bool().all(dim=2), mask)


def test_a_context_of_no_tokens_takes_none_from_the_others():
    stacked, mask = stack_contexts([torch.ones(1, 0, 4), torch.ones(1, 3, 4)])
    assert mask is not None
    assert mask.sum(dim=1).tolist() == [0, 3]
    assert torch.equal(stacked.bool().all(dim=2), mask)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


SHOWN = normal(1, 1, 4, 8, 8)
UNETS: dict[str, tuple[Unet, dict[str, Any], tuple[int, int]]] = {
    "SD 2": (Sd((64, 128), (1, 1), (1, 1), 1, 64, linear=True), {}, (9, 284)),
    "SDXL": (
        Sdxl((32, 64), (1, 1), (0, 1), 1, 64, linear=True, vector_dim=32 + 6 * 256),
        {"pooled_output": normal(2, 1, 32)},
        (10, 210),
    ),
    "inpainting": (
        Sd((32, 64), (1, 1), (0, 1), 1, 64, concat_channels=5),
        {"concat_latent_image": SHOWN, "concat_mask": torch.ones(1, 1, 64, 64)},
        (11, 206),
    ),
    "editing": (Sd((32, 64), (1, 1), (0, 1), 1, 64, concat_channels=4), {"concat_latent_image": SHOWN}, (11, 206)),
}
"""By kind: a network, what its rows are told, and kernels around the call of a replayed forward and in it.

Of three rows of unequal texts, filled up to four; one more than a card takes is counted around it.
"""


@torch.inference_mode()
@pytest.mark.parametrize("kind", UNETS)
def test_nothing_in_a_recorded_call_comes_from_the_host_or_makes_it_wait(kind: str) -> None:
    family, options, expected = UNETS[kind]
    card = Card()
    with card.used():
        module = card.settle(family.build().eval().requires_grad_(False))
        network = LoadedNetwork(kind, family, module, Discrete(), Replays(CardRecorder(card), ROW_BUCKETS))
        for number in range(EAGER + 3):
            rows = []
            for i, length in enumerate((77, 154, 77)):
                x = normal(10 * number + i, 1, 4, 8, 8).to(CARD)
                text = normal(10 * number + i + 5, 1, length, 64)
                inputs = family.inputs(text, options, "positive", Canvas(x, x), CARD, Discrete())
                rows.append(Rows(x, 1.0, torch.full((1,), 10.0 * number).to(CARD), inputs))
            before = card.counts.copy()
            network.answer(rows)
            counts = card.counts.since(before)
    assert network.replays.counters.replays == 3
    assert (counts.trapped, counts.stalls) == (0, 0), counts.where
    assert (counts.kernels, counts.inside) == expected
