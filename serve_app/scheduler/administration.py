"""What an operator asks of a running server: to hold work back, to load models ahead, to free memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

from serve_app import log
from serve_app.errors import InvalidSubmissionError, did_you_mean, short_repr
from serve_app.graph.plan import Pool
from serve_app.scheduler.core.events import PausesChanged
from serve_app.scheduler.core.replicas import Replicas
from serve_app.scheduler.core.results import Results
from serve_app.scheduler.protocol.messages import Free, Warm
from serve_app.scheduler.replicas.registry import ReplicaRegistry
from serve_app.store.database.queries import Query
from serve_app.store.tenants.pauses import AllPauses, Pause, SetPause

_log = log.get("scheduler")

Held: TypeAlias = Mapping[Pause, float]
"""What is held back, each with the Unix time since when."""


class Administration:
    """One a scheduler's life. replicas, results: as the machine knows them. feed: lets the machine decide."""

    def __init__(
        self,
        pools: Sequence[Pool],
        replicas: Replicas,
        results: Results,
        registry: ReplicaRegistry,
        *,
        apply: Callable[[PausesChanged], Any],
        query: Callable[[Query[Held]], Awaitable[Held]],
    ) -> None:
        self.paused: Held = {}
        self._pools = pools
        self._replicas = replicas
        self._results = results
        self._registry = registry
        self._apply = apply
        self._query = query
        self._pausing = asyncio.Lock()

    async def recall(self) -> None:
        """Hold back what was held back before this life."""
        self._hold(await self._query(AllPauses()))

    async def pause(self, pause: Pause, paused: bool) -> tuple[Pause, ...]:
        """As `SchedulerClient.pause`."""
        # One that the configuration has no longer may still be paused.
        if pause.kind == "pool" and paused:
            self._check_pool(pause.name)
        async with self._pausing:
            self._hold(await self._query(SetPause(pause, paused)))
        _log.info("%s %s", pause, "paused" if paused else "resumed")
        return tuple(self.paused)

    def _hold(self, paused: Held) -> None:
        self.paused = paused
        self._apply(PausesChanged(frozenset(paused)))

    def warm(self, models: Sequence[str], pool: str | None) -> tuple[str, ...]:
        """As `SchedulerClient.warm`."""
        if pool is not None:
            self._check_pool(pool)
        able = {each.name for each in self._pools if each.runtime and not each.whole and pool in (None, each.name)}
        told = sorted(name for name, replica in self._replicas.items() if replica.info.pool in able)
        for name in told:
            self._registry.mail(name, Warm(tuple(models)))
        return tuple(told)

    def free(self, wish: Free) -> None:
        """As `SchedulerClient.free`."""
        if wish.results:
            self._results.forget_all_ui()
        self._registry.mail_all(wish)

    def _check_pool(self, name: str) -> None:
        pools = [pool.name for pool in self._pools]
        if name not in pools:
            hint = did_you_mean(name, pools)
            raise InvalidSubmissionError(f"no pool is named {short_repr(name)}; there are {', '.join(pools)}{hint}")
