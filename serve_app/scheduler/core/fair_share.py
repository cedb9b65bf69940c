"""Whose turn it is: the tenants of one pool, by how much of it each has had, over its weight.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996), for several servers and work that is not known in
advance. A tenant has a virtual time: the seconds that it has had of the pool's devices, over its weight. Of those that
wait, the one with the least is next. A task is charged what it is expected to take as it starts, and what it did take
as it ends. Whoever comes back is set forward to where the last of the others is: nobody saves up turns while idle.

So of two tenants that both wait, as long as order is kept, neither is ahead of the other by more than one task of its
own, over its weight, beside what is under way; and whoever waits is passed by no other for more than it is behind, and
a task.

A virtual time never falls while its tenant waits, so that heaps find the least. What a task was expected to take and
did not is credit, with which the tenant's next tasks are paid.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable

LEAST_S = 0.001
"""What any task is charged at least: one that takes no time must not be a turn for nothing, again and again."""
FIRST = "\0"
"""Whose turn it always is. No tenant's name."""


class FairShare:
    """The virtual times of one pool. weight: of a tenant, greater than 0."""

    def __init__(self, weight: Callable[[str], float]) -> None:
        self._weight = weight
        self._times: dict[str, float] = {}
        self._credit_s: defaultdict[str, float] = defaultdict(float)
        self._waiting: Counter[str] = Counter()
        self._order = Ranking(self)
        self._floor = 0.0

    def time(self, tenant: str) -> float:
        """Return a tenant's virtual time."""
        return float("-inf") if tenant == FIRST else self._times.get(tenant, self._floor)

    def behind_s(self, tenant: str, other: str) -> float:
        """Return how much more a tenant would have had, had it had as much as another for its weight."""
        return (self.time(other) - self.time(tenant)) * self._weight(tenant)

    def enter(self, tenant: str) -> None:
        """Take in that one more task of a tenant waits."""
        if not self._waiting[tenant]:
            self._advance_floor()
            # While it is in no heap, its time may fall.
            had = self._times.get(tenant, 0.0) - self._credit_s.pop(tenant, 0.0) / self._weight(tenant)
            self._times[tenant] = max(had, self._floor)
            self._order.add(tenant)
        self._waiting[tenant] += 1

    def leave(self, tenant: str) -> None:
        """Take in that one task of a tenant waits no longer."""
        self._waiting[tenant] -= 1
        if not self._waiting[tenant]:
            self._advance_floor()
            del self._waiting[tenant]
            self._order.discard(tenant)

    def start(self, tenant: str, expected_s: float) -> float:
        """Charge a task that starts; return what is charged, for `end`."""
        charged_s = max(LEAST_S, expected_s)
        self._charge(tenant, charged_s)
        return charged_s

    def end(self, tenant: str, charged_s: float, took_s: float) -> None:
        """Charge what a task did take in the place of what it was charged."""
        self._charge(tenant, max(LEAST_S, took_s) - charged_s)

    def _charge(self, tenant: str, seconds: float) -> None:
        left_s = seconds - self._credit_s.pop(tenant, 0.0)
        if left_s < 0.0:
            self._credit_s[tenant] = -left_s
        else:
            self._times[tenant] = self.time(tenant) + left_s / self._weight(tenant)

    def _advance_floor(self) -> None:
        """Set who comes from now on no further back than whoever is furthest back of those that wait."""
        if (last := self._order.first()) is not None:
            self._floor = max(self._floor, self._times[last])


class Ranking:
    """Some tenants in the order of their virtual times, which only grow while they are in it."""

    def __init__(self, shares: FairShare) -> None:
        self._shares = shares
        # Entries stay whose tenant has gone since; the number tells.
        self._heap: list[tuple[float, str, int]] = []
        self._there: dict[str, int] = {}
        self._added = 0

    def __len__(self) -> int:
        return len(self._there)

    def add(self, tenant: str) -> None:
        """Put a tenant in, if it is not."""
        if tenant not in self._there:
            self._added += 1
            self._there[tenant] = self._added
            heapq.heappush(self._heap, (self._shares.time(tenant), tenant, self._added))

    def discard(self, tenant: str) -> None:
        """Take a tenant out, if it is in."""
        self._there.pop(tenant, None)
        if not self._there:
            self._heap.clear()

    def first(self) -> str | None:
        """Return whose turn it is; None if nobody is there."""
        while self._heap:
            at, tenant, number = self._heap[0]
            if self._there.get(tenant) != number:
                heapq.heappop(self._heap)
            elif (now := self._shares.time(tenant)) > at:
                heapq.heapreplace(self._heap, (now, tenant, number))
            else:
                return tenant
        return None

    def firsts(self, count: int) -> list[str]:
        """Return the first tenants in order, at most so many."""
        if len(self._there) == 1:
            return list(self._there)
        found: list[tuple[float, str, int]] = []
        while len(found) < count and self.first() is not None:
            found.append(heapq.heappop(self._heap))
        for entry in found:
            heapq.heappush(self._heap, entry)
        return [tenant for _, tenant, _ in found]
