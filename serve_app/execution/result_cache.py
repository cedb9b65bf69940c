"""A replica's LRU cache of node results by signature, including results that are being computed.

Used from one event loop only. A result that a running task uses outlives its eviction, because the task refers to it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection

from serve_app.execution.call import NodeResult
from serve_app.execution.size import size_of

ENTRY_BYTES = 1024
"""The least size that an entry counts, so that small results cannot accumulate."""


class ResultCache:
    """Results under a budget of bytes. evicted: called with the signatures of evicted results.

    entries: how many results are kept, however small, beside those that `begin` names; None is no limit.
    """

    def __init__(
        self, budget_bytes: int, evicted: Callable[[tuple[str, ...]], None], entries: int | None = None
    ) -> None:
        self._budget_bytes = budget_bytes
        self._entries = entries
        self._evicted = evicted
        self._results: OrderedDict[str, tuple[NodeResult, int]] = OrderedDict()
        self._computing: dict[str, asyncio.Future[NodeResult]] = {}
        self.bytes = 0

    def __contains__(self, signature: str) -> bool:
        return signature in self._results

    def get(self, signature: str) -> NodeResult | None:
        """Return the result and count it as used, or None."""
        entry = self._results.get(signature)
        if entry is None:
            return None
        self._results.move_to_end(signature)
        return entry[0]

    def put(self, signature: str, result: NodeResult) -> None:
        """Cache the result, evicting others over the budget; never this one, however large."""
        self._drop(signature)
        size = ENTRY_BYTES + size_of(result.outputs)
        self._results[signature] = (result, size)
        self.bytes += size
        gone = []
        while self.bytes > self._budget_bytes and len(self._results) > 1:
            oldest = next(iter(self._results))
            self._drop(oldest)
            gone.append(oldest)
        if gone:
            self._evicted(tuple(gone))

    def begin(self, signatures: Collection[str]) -> None:
        """Evict the least recently used results over `entries`, except these, which running tasks may use."""
        for signature in signatures:
            self.get(signature)
        over = len(self._results) - (len(self._results) if self._entries is None else self._entries)
        others = (signature for signature in self._results if signature not in signatures)
        gone = tuple(itertools.islice(others, max(0, over)))
        for signature in gone:
            self._drop(signature)
        if gone:
            self._evicted(gone)

    def clear(self) -> None:
        """Evict every result."""
        gone = tuple(self._results)
        for signature in gone:
            self._drop(signature)
        if gone:
            self._evicted(gone)

    def forget(self, signatures: tuple[str, ...]) -> None:
        """Evict these results, and report it."""
        for signature in signatures:
            self._drop(signature)
        self._evicted(signatures)

    def evict_outputs(self) -> None:
        """Evict results of output nodes: their files may have been deleted."""
        gone = tuple(signature for signature, (result, _) in self._results.items() if result.ui)
        for signature in gone:
            self._drop(signature)
        if gone:
            self._evicted(gone)

    async def make(self, signature: str, compute: Callable[[], Awaitable[NodeResult]]) -> NodeResult:
        """Return the cached result, or wait for the caller that computes it, or compute and cache it.

        If that caller fails or is cancelled, one of those waiting computes it. Errors: compute's own.
        """
        while (result := self.get(signature)) is None:
            computing = self._computing.get(signature)
            if computing is None:
                return await self._compute(signature, compute)
            await asyncio.wait([computing])
            if not computing.cancelled():
                return computing.result()
        return result

    async def _compute(self, signature: str, compute: Callable[[], Awaitable[NodeResult]]) -> NodeResult:
        computing = self._computing[signature] = asyncio.get_running_loop().create_future()
        try:
            result = await compute()
            self.put(signature, result)
            computing.set_result(result)
            return result
        finally:
            # A failure is this caller's own; the others only see that the computation has stopped.
            del self._computing[signature]
            computing.cancel()

    def _drop(self, signature: str) -> None:
        if signature in self._results:
            self.bytes -= self._results.pop(signature)[1]
