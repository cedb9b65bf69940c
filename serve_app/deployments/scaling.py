"""How many replicas a pool should have: enough for every task that waits or runs, as the scheduler counts them.

Serve's own metric, requests in hand, says nothing of tasks, because replicas take these from the scheduler. It counts
the calls of node packs' routes, for which one replica is enough.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

from ray.serve.config import AutoscalingContext

from serve_app.deployments.handles import SchedulerHandle
from serve_app.errors import ServeAppError


class Backlog:
    """An autoscaling policy. Runs in Serve's controller, whose loop must not wait: the count is fetched beside it."""

    def __init__(self, pool: str, tasks_per_replica: int) -> None:
        self._pool = pool
        self._tasks_per_replica = tasks_per_replica
        self._handle = SchedulerHandle()
        self._tasks: int | None = None
        self._asking: asyncio.Task[None] | None = None

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Return the wanted number of replicas; as it is now while the scheduler cannot be asked."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._ask())
        if self._tasks is None:
            return context.target_num_replicas, {}
        wanted = max(math.ceil(self._tasks / self._tasks_per_replica), int(context.total_num_requests > 0))
        low, high = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        return max(low, min(high, wanted)), {}

    async def _ask(self) -> None:
        try:
            waiting, running = await self._handle.backlog(self._pool)
            self._tasks = waiting + running
        except ServeAppError:
            self._tasks = None
