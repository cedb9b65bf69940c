"""Time limits of node calls: the waiter gets an error at the limit, whether or not the call ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from serve_app.errors import NodeError
from serve_app.graph.spec import NodeSpec

LOOK_S = 0.1
"""The shortest interval at which a call that waits for a thread is checked, however short its limit."""


@dataclass(frozen=True, slots=True)
class TimeLimit:
    """A time limit in seconds, and where it is configured, for errors: "node_time_s of pool cpu"."""

    seconds: float
    source: str


@dataclass(frozen=True, slots=True)
class NodeLimits:
    """How long one call of a pool's nodes may take; runtime_node_s for nodes with RUNTIME. None is no limit."""

    pool: str = ""
    node_s: float | None = None
    runtime_node_s: float | None = None

    def of(self, spec: NodeSpec, extra_data: Mapping[str, Any]) -> TimeLimit | None:
        """Return the lower of the pool's limit and the submission's own in its extra_data."""
        seconds, key = (self.runtime_node_s, "runtime_node_time_s") if spec.runtime else (self.node_s, "node_time_s")
        asked = extra_data.get("node_time_s")
        limits = [] if seconds is None else [TimeLimit(seconds, f"{key} of pool {self.pool}")]
        if isinstance(asked, int | float):
            limits.append(TimeLimit(asked, "node_time_s of the job's extra_data"))
        return min(limits, key=lambda limit: limit.seconds, default=None)


class NodeTimeError(NodeError):
    """A node exceeded its time limit."""


async def within_time_limit(
    work: Callable[[Callable[[], None]], Coroutine[Any, Any, Any]], limit: TimeLimit | None, what: str
) -> Any:
    """Await work(begun) and return its result. Its time counts from its call of `begun`, from any thread.

    Work over its time is cancelled but not awaited. what: its name in the error. Errors: NodeTimeError.
    """
    if limit is None:
        return await work(lambda: None)
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Any] = loop.create_future()
    began_s: list[float] = []
    timer = loop.call_later(limit.seconds, lambda: look())

    def begun() -> None:
        began_s.append(time.monotonic())

    def look() -> None:
        # No thread wakes the loop at the start of the time, as nearly every call ends long before the limit.
        nonlocal timer
        left_s = limit.seconds - (time.monotonic() - began_s[0]) if began_s else max(limit.seconds, LOOK_S)
        if left_s > 0:
            timer = loop.call_later(left_s, look)
        elif not outcome.done():
            outcome.set_exception(NodeTimeError(f"{what} ran for longer than {limit.seconds:g} s, the {limit.source}"))
            running.cancel()

    def ended(_: asyncio.Task[Any]) -> None:
        error = asyncio.CancelledError() if running.cancelled() else running.exception()
        if outcome.done():
            return
        if error is None:
            outcome.set_result(running.result())
        else:
            outcome.set_exception(error)

    running = asyncio.create_task(work(begun))
    running.add_done_callback(ended)
    try:
        return await outcome
    except asyncio.CancelledError:
        running.cancel()
        await asyncio.wait([running])
        raise
    finally:
        timer.cancel()
