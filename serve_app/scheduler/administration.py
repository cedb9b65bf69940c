"""Operators' commands: pause and resume jobs, drain replicas and hosts, load models, free memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from typing import Any, TypeAlias

from serve_app import log
from serve_app.errors import InvalidSubmissionError, did_you_mean, short_repr
from serve_app.graph.plan import Pool
from serve_app.scheduler.core.events import PausesChanged
from serve_app.scheduler.core.replicas import ReplicaRecord, Replicas
from serve_app.scheduler.core.results import Results
from serve_app.scheduler.protocol.messages import Free, HandOver, Warm
from serve_app.scheduler.replicas.registry import ReplicaRegistry
from serve_app.store.database.queries import Query
from serve_app.store.tenants.pauses import AllPauses, Pause, SetPause

_log = log.get("scheduler")

PausedSince: TypeAlias = Mapping[Pause, float]
"""The pauses, each with the Unix time since when."""


class Administration:
    """The operator commands of one scheduler. replicas, results: the machine's. apply: passes it an event."""

    def __init__(
        self,
        pools: Sequence[Pool],
        replicas: Replicas,
        results: Results,
        registry: ReplicaRegistry,
        *,
        apply: Callable[[PausesChanged], Any],
        query: Callable[[Query[PausedSince]], Awaitable[PausedSince]],
    ) -> None:
        self.paused: PausedSince = {}
        self.drained: PausedSince = {}
        self._pools = pools
        self._replicas = replicas
        self._results = results
        self._registry = registry
        self._apply = apply
        self._query = query
        self._pausing = asyncio.Lock()

    async def recall(self) -> None:
        """Restore the pauses and drains of earlier epochs."""
        self._set(await self._query(AllPauses()))

    async def pause(self, pause: Pause, paused: bool) -> tuple[Pause, ...]:
        """As `SchedulerClient.pause`."""
        # A pool that was removed from the configuration can be resumed.
        if pause.kind == "pool" and paused:
            self._check_pool(pause.name)
        if pause.drains and paused:
            self._check_drain(pause)
        async with self._pausing:
            self._set(await self._query(SetPause(pause, paused)))
        begun, ended = ("drains", "drains no more") if pause.drains else ("paused", "resumed")
        _log.info("%s %s", pause, begun if paused else ended)
        return tuple(self.drained if pause.drains else self.paused)

    def _set(self, pauses: PausedSince) -> None:
        self.paused = {pause: since_s for pause, since_s in pauses.items() if not pause.drains}
        self.drained = {pause: since_s for pause, since_s in pauses.items() if pause.drains}
        self._apply(PausesChanged(frozenset(pauses)))

    def hand_over(self, drain: Pause) -> None:
        """As `SchedulerClient.hand_over`."""
        for name, replica in self._replicas.items():
            if drain.name in _drainable(drain.kind, name, replica):
                self._registry.mail(name, HandOver())

    def warm(self, models: Sequence[str], pool: str | None) -> tuple[str, ...]:
        """As `SchedulerClient.warm`."""
        if pool is not None:
            self._check_pool(pool)
        able = {each.name for each in self._pools if each.runtime and not each.whole and pool in (None, each.name)}
        replica_ids = sorted(name for name, replica in self._replicas.items() if replica.info.pool in able)
        for name in replica_ids:
            self._registry.mail(name, Warm(tuple(models)))
        return tuple(replica_ids)

    def free(self, wish: Free) -> None:
        """As `SchedulerClient.free`."""
        if wish.results:
            self._results.forget_all_ui()
        self._registry.mail_all(wish)

    def _check_drain(self, drain: Pause) -> None:
        there = sorted({each for item in self._replicas.items() for each in _drainable(drain.kind, *item)})
        if drain.name not in there:
            hint = did_you_mean(drain.name, there)
            known = f"there are {', '.join(there)}" if there else "there is none"
            raise InvalidSubmissionError(f"no {drain.kind} is named {short_repr(drain.name)}; {known}{hint}")

    def _check_pool(self, name: str) -> None:
        pools = [pool.name for pool in self._pools]
        if name not in pools:
            hint = did_you_mean(name, pools)
            raise InvalidSubmissionError(f"no pool is named {short_repr(name)}; there are {', '.join(pools)}{hint}")


def _drainable(kind: str, name: str, replica: ReplicaRecord) -> Set[str]:
    """Return the names by which a drain of some kind concerns a replica."""
    return {name} if kind == "replica" else replica.hosts
