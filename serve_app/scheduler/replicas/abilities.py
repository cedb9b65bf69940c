"""The node classes and routes of each pool. Stored in the database too, for pools without a replica."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from serve_app.errors import NotReadyError
from serve_app.graph.plan import Pool
from serve_app.graph.spec import NodeSpec
from serve_app.packs.routes import PackRoute
from serve_app.scheduler.durability.writer import persistently
from serve_app.store.database.jobs import Jobs


class Abilities:
    """The abilities of every pool. in_database: runs a function in the database's thread."""

    def __init__(self, pools: Sequence[Pool], jobs: Jobs, in_database: Callable[..., Awaitable[Any]]) -> None:
        self._pools = pools
        self._jobs = jobs
        self._in_database = in_database
        self._specs: dict[str, dict[str, NodeSpec]] = {}
        self._shared: dict[str, NodeSpec] = {}
        self._routes: dict[str, tuple[PackRoute, ...]] = {}
        self.revision = 0
        """The number of changes in this epoch."""

    def __contains__(self, pool: str) -> bool:
        return pool in self._specs

    async def recall(self) -> None:
        """Read what replicas of earlier epochs reported."""
        for pool, specs in (await self._in_database(self._jobs.specs)).items():
            self._specs[pool] = {s["class_type"]: NodeSpec.from_json(s) for s in specs}
        self._share()
        for pool, routes in (await self._in_database(self._jobs.routes)).items():
            self._routes[pool] = tuple(PackRoute(**route) for route in routes)

    async def learn(self, epoch: int, pool: str, specs: Sequence[NodeSpec], routes: tuple[PackRoute, ...]) -> None:
        """Take over a replica's report; a change is written to the database."""
        fresh = {spec.class_type: spec for spec in specs}
        as_json = [spec.to_json() for spec in specs]
        known = [spec.to_json() for spec in self._specs.get(pool, {}).values()]
        same = json.dumps(known, default=list) == json.dumps(as_json, default=list)
        same &= self._routes.get(pool, ()) == routes
        self._specs[pool], self._routes[pool] = fresh, routes
        self._share()
        if not same:
            self.revision += 1
            save = partial(self._jobs.save_specs, epoch, pool, as_json, [asdict(route) for route in routes])
            await persistently(lambda: self._in_database(save))

    def specs(self) -> Mapping[str, NodeSpec]:
        """Return the node classes of all pools that share workflows."""
        return self._shared

    def _share(self) -> None:
        shared = (self._specs.get(pool.name, {}) for pool in self._pools if not pool.whole)
        self._shared = {name: spec for specs in shared for name, spec in specs.items()}

    def specs_of(self, pool: str) -> Mapping[str, NodeSpec]:
        """Return the node classes of one pool. Errors: NotReadyError before any replica of it has joined."""
        if pool not in self._specs:
            raise NotReadyError(f"no replica of {pool} has joined yet, so its node classes are not known", 5)
        return self._specs[pool]

    def routes(self) -> Mapping[str, tuple[PackRoute, ...]]:
        """Return the routes of node packs by pool."""
        return {pool.name: self._routes.get(pool.name, ()) for pool in self._pools}

    def check(self) -> None:
        """Check that every pool that shares workflows is known, or any pool if none does. Errors: NotReadyError."""
        # Stored, so this waits only with a new database, not after every restart.
        shared = [pool.name for pool in self._pools if not pool.whole]
        if (unknown := [name for name in shared if name not in self._specs]) or not self._specs:
            unknown = unknown or [pool.name for pool in self._pools]
            raise NotReadyError(f"no replica of {', '.join(unknown)} has joined yet, so no workflow can be checked")
