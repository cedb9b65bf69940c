"""How long a call may take: from its beginning, however long it has waited for that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from serve_app.nodes.time_limit import NodeTimeError, TimeLimit, bounded

LIMIT = TimeLimit(0.2, "node_time_s of pool cpu")


async def test_waiting_for_its_turn_takes_none_of_a_calls_time() -> None:
    async def work(begun: Callable[[], None]) -> str:
        await asyncio.sleep(3.5 * LIMIT.seconds)
        begun()
        return "done"

    assert await bounded(work, LIMIT, "node 1") == "done"


async def test_a_call_that_began_late_is_over_its_time_as_long_after_its_beginning() -> None:
    loop, began_s = asyncio.get_running_loop(), list[float]()

    async def work(begun: Callable[[], None]) -> None:
        await asyncio.sleep(1.5 * LIMIT.seconds)
        begun()
        began_s.append(loop.time())
        await asyncio.sleep(60.0)

    with pytest.raises(NodeTimeError, match=r"node 1 ran for longer than 0\.2 s, the node_time_s of pool cpu"):
        await bounded(work, LIMIT, "node 1")
    assert LIMIT.seconds * 0.9 < loop.time() - began_s[0] < 30.0


async def test_a_call_that_ends_leaves_no_timer() -> None:
    async def work(begun: Callable[[], None]) -> int:
        begun()
        return 1

    loop = asyncio.get_running_loop()
    set_timers: list[asyncio.TimerHandle] = []
    call_later = loop.call_later

    def noted(delay: float, callback: Callable[..., object], *arguments: object) -> asyncio.TimerHandle:
        set_timers.append(call_later(delay, callback, *arguments))
        return set_timers[-1]

    loop.call_later = noted  # type: ignore[method-assign, assignment]
    assert await bounded(work, LIMIT, "node 1") == 1
    assert [timer.cancelled() for timer in set_timers] == [True]
