"""How long a call may take: from its beginning, however long it has waited for that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from serve_app.execution.time_limit import LOOK_S, NodeTimeError, TimeLimit, within_time_limit

LIMIT = TimeLimit(0.2, "node_time_s of pool cpu")


async def test_waiting_for_its_turn_takes_none_of_a_calls_time() -> None:
    async def work(begun: Callable[[], None]) -> str:
        await asyncio.sleep(3.5 * LIMIT.seconds)
        begun()
        return "done"

    assert await within_time_limit(work, LIMIT, "node 1") == "done"


async def test_a_call_that_began_late_is_over_its_time_as_long_after_its_beginning() -> None:
    loop, began_s = asyncio.get_running_loop(), list[float]()

    async def work(begun: Callable[[], None]) -> None:
        await asyncio.sleep(1.5 * LIMIT.seconds)
        begun()
        began_s.append(loop.time())
        await asyncio.sleep(60.0)

    with pytest.raises(NodeTimeError, match=r"node 1 ran for longer than 0\.2 s, the node_time_s of pool cpu"):
        await within_time_limit(work, LIMIT, "node 1")
    assert LIMIT.seconds * 0.9 < loop.time() - began_s[0] < 30.0


def timers_of(loop: asyncio.AbstractEventLoop) -> list[asyncio.TimerHandle]:
    """Return a list of all timers that are set on the loop from here on."""
    timers: list[asyncio.TimerHandle] = []
    call_later = loop.call_later

    def noted(delay: float, callback: Callable[..., object], *arguments: object) -> asyncio.TimerHandle:
        timers.append(call_later(delay, callback, *arguments))
        return timers[-1]

    loop.call_later = noted  # type: ignore[method-assign, assignment]
    return timers


async def test_a_call_that_ends_leaves_no_timer() -> None:
    async def work(begun: Callable[[], None]) -> int:
        begun()
        return 1

    timers = timers_of(asyncio.get_running_loop())
    assert await within_time_limit(work, LIMIT, "node 1") == 1
    assert [timer.cancelled() for timer in timers] == [True]


async def test_a_call_of_next_to_no_time_keeps_nobody_busy_while_it_waits_for_its_turn() -> None:
    turn = asyncio.Event()

    async def work(begun: Callable[[], None]) -> str:
        await turn.wait()
        begun()
        return "done"

    loop = asyncio.get_running_loop()
    timers = timers_of(loop)
    waiting = asyncio.create_task(
        within_time_limit(work, TimeLimit(1e-9, "node_time_s of the job's extra_data"), "node 1")
    )
    for _ in range(1000):
        await asyncio.sleep(0)
    assert 1 <= len(timers) <= 2 + (loop.time() - timers[0].when()) / LOOK_S
    turn.set()
    assert await waiting == "done"
