"""Attention over sharded tokens is attention over all of them; ranks are threads here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from serve_app.models.ranks.sharding import sharded_over, sharding
from tests.unit.models.ranks import threads
from tests.unit.models.ranks.threads import Threads


def on_ranks(size: int, work: Callable[[], Any]) -> list[Any]:
    """Return what a function returns on each rank of a forward."""

    def sharded(ranks: Threads) -> Any:
        with sharded_over(ranks):
            return work()

    return threads.on_ranks(size, sharded)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)


@given(data=st.data())
def test_streams_that_attend_to_each_other_find_what_they_find_unsharded(data: st.DataObject) -> None:
    size, heads = data.draw(st.integers(2, 4)), data.draw(st.integers(1, 4))
    lengths = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=3).filter(lambda found: sum(found) >= size))
    total, queries = sum(lengths), data.draw(st.sampled_from(["none", "keys", "both"]))
    q, k, v = (torch.randn(2, total, heads, 8, dtype=torch.float64) for _ in range(3))
    mask = {"none": None, "keys": torch.randn(2, 1, 1, total), "both": torch.randn(2, 1, total, total)}[queries]
    mask = None if mask is None else mask.double()

    def work() -> list[Tensor]:
        shards = sharding(*lengths)
        of_attention = shards.of_attention
        assert of_attention is not None
        own_q, own_k, own_v = (shards.shard(x) for x in (q, k, v))
        found = of_attention.attention(own_q, own_k, own_v, shards.mask(mask), attend)
        streams = torch.split(found, [shards.count(stream) for stream in range(len(lengths))], dim=1)
        return [shards.gather(one, stream) for stream, one in enumerate(streams)]

    for gathered in on_ranks(size, work):
        torch.testing.assert_close(torch.cat(gathered, dim=1), attend(q, k, v, mask))


@pytest.mark.parametrize("heads", [3, 4])
@pytest.mark.parametrize("size", [2, 4])
def test_a_stream_finds_in_another_what_it_finds_unsharded(size: int, heads: int) -> None:
    q = torch.randn(1, 7, heads, 8, dtype=torch.float64)
    k, v = (torch.randn(1, 10, heads, 8, dtype=torch.float64) for _ in range(2))

    def work() -> Tensor:
        queries, keys = sharding(7), sharding(10)
        own = queries.shard(q), keys.shard(k), keys.shard(v)
        return queries.gather(queries.attention(*own, None, attend, keys), 0)

    for gathered in on_ranks(size, work):
        torch.testing.assert_close(gathered, attend(q, k, v, None))


def test_without_ranks_nothing_is_copied() -> None:
    x, mask, shards = torch.randn(1, 5, 2), torch.randn(1, 1, 1, 5), sharding(2, 3)
    assert shards.of_attention is None
    assert shards.shard(x) is x
    assert shards.gather(x, 1) is x
    assert shards.mask(mask) is mask
    assert [shards.count(0), shards.count(1)] == [2, 3]
