"""Which layers of a network stream."""

from __future__ import annotations

from torch import nn

from serve_app.models.weights.streaming import streamed_blocks


def test_a_layer_without_a_bias_streams_unless_it_shares_its_weight():
    first, second, alone = (nn.Linear(64, 64, bias=False) for _ in range(3))
    second.weight = first.weight
    room = int(3.5 * first.weight.nbytes)
    assert [block.layers for block in streamed_blocks(nn.Sequential(first, second, alone), None, room)] == [[alone]]
