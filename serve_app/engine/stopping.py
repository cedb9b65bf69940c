"""Cooperative cancellation of the engine's forwards and calls: they end once no job waits for their answer.

On a CPU, work ends between two operations, and within an attention over many tokens, which is computed in parts. On a
GPU a whole forward is enqueued before it runs, so cancellation takes effect before the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

T = TypeVar("T")

ATTENTION_AT_ONCE = 1 << 32
"""Multiplications of an attention that a thread of a CPU does between two checks: some tenths of a second."""
QUERIES = 1024
"""The fewest queries in a part of an attention: torch's kernel rounds smaller parts differently."""


class StoppedError(BaseException):
    """The work ends because nobody waits for it. No `Exception`, so that code which goes on after those ends too."""


class StoppableFuture(Future[T]):
    """A future that also records a cancellation while its work runs. unwanted: it was cancelled.

    `Future.cancelled` is true only for work that has not begun.
    """

    unwanted = False

    def cancel(self) -> bool:
        """As `Future.cancel`."""
        self.unwanted = True
        return super().cancel()


def unwanted(answers: Iterable[StoppableFuture[Any]]) -> bool:
    """Whether all of these were cancelled."""
    return all(answer.unwanted for answer in answers)


class Stoppable(TorchFunctionMode):
    """A torch function mode in which the next operation raises StoppedError once all futures are cancelled.

    Results are the same, to the bit.
    """

    def __init__(self, answers: Sequence[StoppableFuture[Any]]) -> None:
        super().__init__()
        self._answers = answers

    def check(self) -> None:
        """Errors: StoppedError."""
        # As `unwanted`, but without a generator, as this runs before each operation.
        for answer in self._answers:
            if not answer.unwanted:
                return
        raise StoppedError("nobody waits for this any more")

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation; torch calls this."""
        self.check()
        if func is scaled_dot_product_attention:
            return self._attention(*args, **(kwargs or {}))
        return func(*args, **kwargs) if kwargs else func(*args)

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return the attention of queries (…,N,d), in parts where they are many. attn_mask: (…,N,M) or (…,1,M)."""
        count = query.shape[-2]
        of_one = query.numel() // max(count, 1) * key.shape[-2]
        most = max(QUERIES, ATTENTION_AT_ONCE * torch.get_num_threads() // max(of_one, 1) // QUERIES * QUERIES)
        # A causal mask depends on the position of queries, and dropout draws for all at once.
        if count < 2 * most or args or kwargs.get("is_causal") or kwargs.get("dropout_p"):
            return scaled_dot_product_attention(query, key, value, attn_mask, *args, **kwargs)
        # The last part has the remainder too.
        starts = range(0, count - most + 1, most)
        found = []
        for start, stop in zip(starts, [*starts[1:], count], strict=True):
            self.check()
            mask = attn_mask if attn_mask is None or attn_mask.shape[-2] == 1 else attn_mask[..., start:stop, :]
            found.append(scaled_dot_product_attention(query[..., start:stop, :], key, value, mask, **kwargs))
        return torch.cat(found, dim=-2)
