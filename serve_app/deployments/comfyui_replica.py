"""The Serve deployment class of replicas that run a ComfyUI process; like `replica.py`, without engine and torch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from functools import partial

from ray import serve

from serve_app.config import AppConfig
from serve_app.config.pool import PoolConfig
from serve_app.deployments import metrics, telemetry
from serve_app.deployments.handles import own_actor, scheduler_client
from serve_app.deployments.proxy.loopback import keep_to_the_node
from serve_app.deployments.replica import ObjectStore
from serve_app.limits import REFUSALS
from serve_app.packs.routes import PackCall, Piece


class ComfyUIReplica:
    """One replica of a pool with `comfyui`. The ComfyUI is another process, which may be replaced meanwhile."""

    async def __init__(self, config: AppConfig, pool: PoolConfig) -> None:  # type: ignore[misc]
        # Here and not above, so that who only deploys this class needs none of it.
        from serve_app.replica.comfyui_assemble import assemble_comfyui

        replica_id = serve.get_replica_context().replica_id.unique_id
        telemetry.configure(config, "replica", replica=replica_id)
        keep_to_the_node()
        scheduler = scheduler_client(me=own_actor())
        self._replica_id = replica_id
        self._runner = assemble_comfyui(config, pool, replica_id, scheduler, ObjectStore())
        self._life = asyncio.create_task(self._runner.run())
        self._showing = asyncio.create_task(metrics.show(partial(self._figures, pool.name, replica_id)))

    def _figures(self, pool: str, replica_id: str) -> Iterator[metrics.Figure]:
        yield from metrics.node_figures(pool, replica_id, self._runner.times)
        yield from metrics.limit_figures({}, REFUSALS)

    async def answer(self, call: PackCall) -> AsyncIterator[str | Piece]:
        """Forward a request. Yields this replica's id first, then the answer."""
        yield self._replica_id
        async with aclosing(self._runner.answer(call)) as pieces:
            async for piece in pieces:
                yield piece

    def check_health(self) -> None:
        """Fail Serve's health check once the replica has ended by an error. It restarts its ComfyUI itself."""
        if self._life.done():
            self._life.result()

    async def __del__(self) -> None:
        if life := getattr(self, "_life", None):
            self._showing.cancel()
            await self._runner.leave()
            life.cancel()
