"""Sequence parallelism: the tokens of a forward are sharded over ranks, and attention is over all of them.

All layers but attention work token by token, so each rank computes its shard. For attention, Ulysses exchanges shards
of tokens for shards of heads, before and after; where the ranks do not divide the heads, each rank gathers the keys and
values of all others, as ring attention passes them round. Shards may differ in length, so no token is padded and no
mask is needed for that. Sources: Jacobs et al. 2023, arXiv:2309.14509 (Ulysses); Liu et al. 2023, arXiv:2310.01889
(ring attention); Fang et al. 2024, arXiv:2411.01738 (joint attention of text and image).

A family's forward asks for a `sharding` of its streams of tokens, shards what it computes with, runs its attention over
all ranks (`kernels.attention.attention_over`), and gathers its output. Outside of `sharded_over` there is one shard,
and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from itertools import accumulate
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from serve_app.sampling.transfer import to_device

Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]
"""From queries, keys and values (R,n,H,d) and a mask to what was found, (R,n,H,d)."""


class SequenceRanks(Protocol):
    """The ranks that compute one forward together. rank: this process's number among them."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def all_to_all(self, sent: Sequence[Tensor], received: Sequence[Sequence[int]]) -> list[Tensor]:
        """Send a tensor to each rank; return the one from each. received: their shapes."""
        ...

    def all_gather(self, own: Tensor, sizes: Sequence[int], dim: int) -> Tensor:
        """Return the tensors of all ranks along a dimension. sizes: there, by rank."""
        ...


_ranks: ContextVar[SequenceRanks | None] = ContextVar("ranks of this forward", default=None)


@contextmanager
def sharded_over(ranks: SequenceRanks | None) -> Iterator[None]:
    """Shard the tokens of forwards inside over ranks; None: over none."""
    token = _ranks.set(ranks)
    try:
        yield
    finally:
        _ranks.reset(token)


def sharding(*lengths: int) -> Sharding:
    """Return how streams of tokens of these lengths, which attend to each other, are sharded."""
    return Sharding(_ranks.get(), lengths)


class Sharding:
    """Shards of streams of tokens: of each stream a rank has neighbouring tokens. Streams are named by their number.

    lengths: of the streams.
    """

    def __init__(self, ranks: SequenceRanks | None, lengths: Sequence[int]) -> None:
        self._ranks = ranks
        self.lengths = lengths

    @property
    def of_attention(self) -> Sharding | None:
        """What attention needs to know of it: None where there is one shard."""
        return None if self._ranks is None else self

    @cached_property
    def _sizes(self) -> list[list[int]]:
        """The tokens of each stream, by rank."""
        size = 1 if self._ranks is None else self._ranks.size
        return [[n // size + (rank < n % size) for rank in range(size)] for n in self.lengths]

    @cached_property
    def totals(self) -> list[int]:
        """The tokens of all streams, by rank."""
        return [sum(sizes) for sizes in zip(*self._sizes, strict=True)]

    def count(self, stream: int) -> int:
        """Return how many tokens of a stream this rank has."""
        return self._sizes[stream][0 if self._ranks is None else self._ranks.rank]

    def shard(self, x: Tensor, *streams: int, dim: int = 1) -> Tensor:
        """Return this rank's tokens of x, which has those of some streams along a dimension; none given: of all."""
        if self._ranks is None:
            return x
        streams = streams or tuple(range(len(self.lengths)))
        apart = torch.split(x, [self.lengths[stream] for stream in streams], dim)
        rank = self._ranks.rank
        own = [
            whole.narrow(dim, sum(self._sizes[stream][:rank]), self._sizes[stream][rank])
            for whole, stream in zip(apart, streams, strict=True)
        ]
        return own[0] if len(own) == 1 else torch.cat(own, dim)

    def gather(self, x: Tensor, stream: int, dim: int = 1) -> Tensor:
        """Return all tokens of a stream of which x has this rank's."""
        return x if self._ranks is None else self._ranks.all_gather(x, self._sizes[stream], dim)

    def mask(self, mask: Tensor | None) -> Tensor | None:
        """Return a mask of attention over all streams, (…,1 or L,L), as `attention` takes it: in the order of ranks."""
        if self._ranks is None or mask is None:
            return mask
        order = to_device(self._order, mask.device)
        return mask[..., order] if mask.shape[-2] == 1 else mask[..., order, :][..., order]

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, attend: Attend, keys: Sharding | None = None
    ) -> Tensor:
        """Return what this rank's queries (R,n,H,d) find in the keys and values of all ranks, (R,n,H,d).

        mask: of `mask`. keys: the sharding of keys and values, if it is another one.
        """
        assert self._ranks is not None
        keys = keys or self
        if not (self._divides(q.shape[2]) and self._divides(k.shape[2])):
            k, v = (self._ranks.all_gather(one, keys.totals, 1) for one in (k, v))
            if mask is not None and mask.shape[-2] > 1:
                mask = mask.narrow(-2, sum(self.totals[: self._ranks.rank]), q.shape[1])
            return attend(q, k, v, mask)
        # One after the other: of three exchanged together, all shards and all that arrives would be there at once.
        q, k, v = self._to_heads(q), keys._to_heads(k), keys._to_heads(v)
        return self._to_tokens(attend(q, k, v, mask))

    def _divides(self, heads: int) -> bool:
        """Whether ranks share an attention by heads."""
        return self._ranks is not None and heads % self._ranks.size == 0

    @cached_property
    def _order(self) -> Tensor:
        """The numbers of tokens, as they are in all streams one after another, in the order of ranks."""
        starts = [0, *accumulate(self.lengths)]
        order = []
        for rank in range(len(self.totals)):
            for start, sizes in zip(starts, self._sizes, strict=False):
                first = start + sum(sizes[:rank])
                order.append(torch.arange(first, first + sizes[rank]))
        return torch.cat(order)

    def _to_heads(self, own: Tensor) -> Tensor:
        """Return a tensor of this rank's tokens (R,n,H,d) as that of its heads, (R,L,H/N,d)."""
        assert self._ranks is not None
        size, (rows, _, heads, width) = self._ranks.size, own.shape
        shapes = [(rows, tokens, heads // size, width) for tokens in self.totals]
        return torch.cat(self._ranks.all_to_all(own.chunk(size, dim=2), shapes), dim=1)

    def _to_tokens(self, found: Tensor) -> Tensor:
        """Return what this rank's heads found, (R,L,H/N,d), as what its tokens found, (R,n,H,d)."""
        assert self._ranks is not None
        rows, _, heads, width = found.shape
        shape = (rows, self.totals[self._ranks.rank], heads, width)
        sent = torch.split(found, self.totals, dim=1)
        return torch.cat(self._ranks.all_to_all(sent, [shape] * self._ranks.size), dim=2)
