"""Fair queueing of the tenants of one pool by device time.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996), for several servers and work whose length is not known in
advance. A tenant's virtual time is the device time that it has had in the pool, divided by its weight. Of the tenants
that wait, the one with the lowest virtual time is next. A task is charged its expected time as it starts and its
measured time as it ends. A returning tenant starts at the lowest virtual time of those that wait (virtual-time
catch-up), so no turns are saved up while idle.

Bounds: while order is kept, of two waiting tenants neither is ahead by more than one of its own tasks, over its weight,
and what is running. No tenant passes a waiting one for more than the latter is behind, and one task.

A virtual time never falls while its tenant waits, so that heaps find the lowest. Time that was charged but not taken
becomes credit, which pays for the tenant's next tasks.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable

LEAST_S = 0.001
"""The least charge of a task. Tasks that take no time would otherwise get unlimited turns."""
FIRST = "\0"
"""A pseudo-tenant that is always first. No tenant can have this name."""


class FairShare:
    """The virtual times of one pool. weight: of a tenant, greater than 0."""

    def __init__(self, weight: Callable[[str], float]) -> None:
        self._weight = weight
        self._times: dict[str, float] = {}
        self._credit_s: defaultdict[str, float] = defaultdict(float)
        self.waiting: Counter[str] = Counter()
        self.order = Ranking(self)
        self._floor = 0.0

    def time(self, tenant: str) -> float:
        """Return a tenant's virtual time."""
        return float("-inf") if tenant == FIRST else self._times.get(tenant, self._floor)

    def behind_s(self, tenant: str, other: str) -> float:
        """Return by how many seconds of device time a tenant is behind another, over their weights."""
        return (self.time(other) - self.time(tenant)) * self._weight(tenant)

    def enter(self, tenant: str) -> None:
        """Count one more waiting task of a tenant."""
        if not self.waiting[tenant]:
            self._advance_floor()
            # A time may fall here, since the tenant is in no heap.
            had = self._times.get(tenant, 0.0) - self._credit_s.pop(tenant, 0.0) / self._weight(tenant)
            self._times[tenant] = max(had, self._floor)
            self.order.add(tenant)
        self.waiting[tenant] += 1

    def leave(self, tenant: str) -> None:
        """Count one waiting task of a tenant less."""
        self.waiting[tenant] -= 1
        if not self.waiting[tenant]:
            self._advance_floor()
            del self.waiting[tenant]
            self.order.discard(tenant)

    def start(self, tenant: str, expected_s: float) -> float:
        """Charge a task that starts; return what is charged, for `end`."""
        charged_s = max(LEAST_S, expected_s)
        self._charge(tenant, charged_s)
        return charged_s

    def end(self, tenant: str, charged_s: float, took_s: float) -> None:
        """Replace a task's charge by its measured time."""
        self._charge(tenant, max(LEAST_S, took_s) - charged_s)

    def _charge(self, tenant: str, seconds: float) -> None:
        left_s = seconds - self._credit_s.pop(tenant, 0.0)
        if left_s < 0.0:
            self._credit_s[tenant] = -left_s
        else:
            self._times[tenant] = self.time(tenant) + left_s / self._weight(tenant)

    def _advance_floor(self) -> None:
        """Raise the virtual time of returning tenants to the lowest one that waits."""
        if (last := self.order.first()) is not None:
            self._floor = max(self._floor, self._times[last])


class Ranking:
    """Tenants in order of their virtual times, which must not fall while they are in it."""

    def __init__(self, shares: FairShare) -> None:
        self._shares = shares
        # Entries of removed tenants stay; their number is not current.
        self.entries: list[tuple[float, str, int]] = []
        self._there: dict[str, int] = {}
        self._added = 0

    def __len__(self) -> int:
        return len(self._there)

    def add(self, tenant: str) -> None:
        """Add a tenant if it is absent."""
        if tenant not in self._there:
            self._added += 1
            self._there[tenant] = self._added
            heapq.heappush(self.entries, (self._shares.time(tenant), tenant, self._added))

    def discard(self, tenant: str) -> None:
        """Remove a tenant if it is present."""
        self._there.pop(tenant, None)
        if not self._there:
            self.entries.clear()

    def first(self) -> str | None:
        """Return the first tenant, None if there is none."""
        while self.entries:
            at, tenant, number = self.entries[0]
            if self._there.get(tenant) != number:
                heapq.heappop(self.entries)
            elif (now := self._shares.time(tenant)) > at:
                heapq.heapreplace(self.entries, (now, tenant, number))
            else:
                return tenant
        return None

    def firsts(self, count: int) -> list[str]:
        """Return the first tenants in order, at most `count`."""
        if len(self._there) == 1:
            return list(self._there)
        found: list[tuple[float, str, int]] = []
        while len(found) < count and self.first() is not None:
            found.append(heapq.heappop(self.entries))
        for entry in found:
            heapq.heappush(self.entries, entry)
        return [tenant for _, tenant, _ in found]
