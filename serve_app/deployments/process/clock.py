"""Restarts Serve's controller when the wall clock was set back.

Serve's controller times its health checks by the wall clock (ray 2.60, serve/_private/deployment_state.py): set back by
an hour, it would notice no dead replica and no dead proxy for an hour. A restarted controller checks at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import ray
from ray.exceptions import RayError

from serve_app import log

CONTROLLER, NAMESPACE = "SERVE_CONTROLLER_ACTOR", "serve"
STEP_S = 5.0
"""The least step back that matters; a smaller one only delays health checks by as much."""
LOOK_S = 1.0
_log = log.get("deployments.clock")


class Clock:
    """Detects that the wall clock was set back. wall, steady: clocks, for tests."""

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self._wall, self._steady = wall, steady
        self._offset_s = wall() - steady()

    def set_back_s(self) -> float:
        """Return by how much the clock was set back since the last call; 0 for less than STEP_S."""
        before, self._offset_s = self._offset_s, self._wall() - self._steady()
        step_s = before - self._offset_s
        return step_s if step_s >= STEP_S else 0.0


async def watch() -> None:
    """Restart Serve's controller whenever the clock was set back. Replicas and proxies run on meanwhile."""
    clock = Clock()
    while True:
        await asyncio.sleep(LOOK_S)
        if step_s := clock.set_back_s():
            _log.warning("the clock was set back by %.0f s: Serve's controller is restarted", step_s)
            await asyncio.to_thread(_restart_controller)


def _restart_controller() -> None:
    # Not there: the application is being started or withdrawn.
    with contextlib.suppress(ValueError, RayError):
        ray.kill(ray.get_actor(CONTROLLER, NAMESPACE), no_restart=False)
