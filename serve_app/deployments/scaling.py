"""The autoscaling policy of pools: enough replicas to drain the waiting tasks soon, by their expected duration.

Serve's own metric, requests in hand, says nothing of tasks, because replicas take these from the scheduler. It counts
the calls of node packs' routes, for which one replica is enough.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ray.serve.config import AutoscalingContext

from serve_app.deployments.handles import scheduler_client
from serve_app.errors import ServeAppError
from serve_app.scheduler.core.demand import Demand, replicas_by_seconds


class Backlog:
    """An autoscaling policy. Runs in Serve's controller, whose loop must not wait: a thread fetches the demand.
    drain_s: the time within which waiting tasks should be drained.
    """

    def __init__(self, pool: str, tasks_per_replica: int, drain_s: float) -> None:
        self._pool = pool
        self._tasks_per_replica = tasks_per_replica
        self._drain_s = drain_s
        self._handle = scheduler_client()
        self._demand: Demand | None = None
        self._asking: asyncio.Task[None] | None = None

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Return the wanted number of replicas; the current one while the scheduler is unavailable."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._ask())
        if self._demand is None:
            return context.target_num_replicas, {}
        wanted = replicas_by_seconds(self._demand, self._tasks_per_replica, self._drain_s)
        wanted = max(wanted, int(context.total_num_requests > 0))
        low, high = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        return max(low, min(high, wanted)), {}

    async def _ask(self) -> None:
        try:
            self._demand = await self._handle.backlog(self._pool)
        except ServeAppError:
            self._demand = None
