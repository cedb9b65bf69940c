"""The model replica and CPU worker: one Serve deployment class, made into pools by configuration.

A replica takes its tasks from the scheduler, not from Serve requests: Serve starts it, checks its health and scales it;
the scheduler, which knows what each replica holds, says what it runs. Only calls of node packs' routes come by Serve.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from functools import partial
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError

from serve_app.config import AppConfig
from serve_app.config.pool import PoolConfig
from serve_app.config.preemption import PreemptionConfig
from serve_app.deployments import metrics, telemetry
from serve_app.deployments.handles import own_actor, scheduler_client
from serve_app.deployments.preemption import notice
from serve_app.deployments.process.stop_notice import leave_at_stop
from serve_app.deployments.process.torch_environment import runtime_env
from serve_app.deployments.proxy.loopback import keep_to_the_node
from serve_app.deployments.ranks import Ranks
from serve_app.limits import REFUSALS
from serve_app.packs.routes import PackCall, Piece
from serve_app.replica import collector
from serve_app.replica.host import own_limit
from serve_app.replica.watchdog import Watchdog, limit_allocations

GET_S = 300.0
"""The timeout of a value's transfer between replicas, after which it is requested again."""


class Replica:
    """One replica of a pool."""

    async def __init__(self, config: AppConfig, pool: PoolConfig) -> None:  # type: ignore[misc]
        replica_id = serve.get_replica_context().replica_id.unique_id
        telemetry.configure(config, "replica", replica=replica_id)
        keep_to_the_node()
        scheduler = scheduler_client(me=own_actor())
        self._replica_id = replica_id
        self._ranks: Ranks | None = None
        with collector.freeze_startup_objects():
            # Here and not above, so that who only deploys this class needs no torch.
            from serve_app.openmp import Executor
            from serve_app.packs.route_server import RouteServer
            from serve_app.packs.server import PromptServer
            from serve_app.replica.assemble import assemble

            if pool.devices > 1:
                self._ranks = await Ranks.start(config, pool, replica_id, runtime_env())
            leader = None if self._ranks is None else self._ranks.leader
            self._runner = assemble(config, pool, replica_id, scheduler, ObjectStore(), ranks=leader)
            self._routes = RouteServer(PromptServer.instance.app)
            asyncio.get_running_loop().set_default_executor(Executor(thread_name_prefix="asyncio"))
        self._runner.deliver_pack_frame = self._routes.deliver_pack_frame
        self._watchdog = Watchdog(
            asyncio.get_running_loop(),
            hang_s=pool.hang_s,
            memory_bytes=own_limit(pool.memory_bytes),
            relieve=self._runner.relieve,
            underway=self._runner.underway,
            turns=lambda: () if self._runner.models is None else self._runner.models.turns,
            turn_s=pool.forward_time_s,
            unwanted_turn=lambda: 0 if self._runner.models is None else self._runner.models.unwanted_turn,
            unwanted=self._runner.computes_unwanted,
        )
        # Not before: what is imported and loaded until here may hold up the loop for as long as it takes.
        self._watchdog.start()
        # Not where nobody has set a limit: what packs map counts as well, and takes no memory.
        if pool.memory_bytes and not pool.gpus:
            limit_allocations(pool.memory_bytes)
        if self._ranks is not None:
            self._ranks.watch()
        self._life = asyncio.create_task(self._runner.run())
        self._leaving = asyncio.create_task(self._leave_in_time(config.preemption))
        self._stopping = asyncio.create_task(leave_at_stop(self._runner.leave))
        self._showing = asyncio.create_task(metrics.show(partial(self._figures, pool.name, replica_id)))

    async def _leave_in_time(self, preemption: PreemptionConfig) -> None:
        if self._ranks is None:
            found = await notice(ray.get_runtime_context().get_node_id(), preemption)
        else:
            found = await self._ranks.notice(preemption)
        await self._runner.leave_by(*found)

    def _figures(self, pool: str, replica_id: str) -> Iterator[metrics.Figure]:
        yield from metrics.node_figures(pool, replica_id, self._runner.times)
        yield from metrics.limit_figures({}, REFUSALS)
        if (stored := self._runner.stored) is not None:
            yield from metrics.stored_figures(pool, replica_id, stored.counters)
        if (models := self._runner.models) is not None:
            yield from metrics.model_figures(pool, replica_id, models)

    async def answer(self, call: PackCall) -> AsyncIterator[str | Piece]:
        """Run the handler of a node pack's route. Yields this replica's id first, then the answer."""
        yield self._replica_id
        async with aclosing(self._routes.answer(call)) as pieces:
            async for piece in pieces:
                yield piece

    def check_health(self) -> None:
        """Fail Serve's health check once the replica's life has ended by an error, or its engine has."""
        if self._life.done():
            self._life.result()
        self._runner.check_health()

    async def __del__(self) -> None:
        if life := getattr(self, "_life", None):
            self._showing.cancel()
            self._leaving.cancel()
            self._stopping.cancel()
            self._watchdog.stop()
            await self._runner.leave()
            life.cancel()
            await self._routes.close()
        if (ranks := getattr(self, "_ranks", None)) is not None:
            ranks.close()


class ObjectStore:
    """Transfers values between replicas through Ray's object store, by reference."""

    def put(self, value: Any) -> Any:
        # In a list, so that the reference itself travels and not what it refers to.
        return [ray.put(value)]

    async def get(self, reference: Any) -> Any:
        """Return the value, or None if its replica has died."""
        try:
            async with asyncio.timeout(GET_S):
                return await reference[0]
        except (RayError, TimeoutError):
            return None
