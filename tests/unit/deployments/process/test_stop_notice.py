"""What a stop of `serve-app up` tells its replicas, and how long it waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from serve_app.deployments.process.stop_notice import VARIABLE, StopNotice, leave_at_stop

LONG_S = 60.0


@pytest.fixture
def notice(monkeypatch: pytest.MonkeyPatch) -> Iterator[StopNotice]:
    given = StopNotice()
    monkeypatch.setenv(VARIABLE, given.environment[VARIABLE])
    yield given
    given.close()


class Replicas:
    """Replicas that leave once they are let."""

    def __init__(self) -> None:
        self.begun, self.may_end = 0, asyncio.Event()

    async def leave(self) -> None:
        self.begun += 1
        await self.may_end.wait()


async def test_a_stop_waits_until_every_replica_has_kept_its_runs(notice: StopNotice) -> None:
    replicas = Replicas()
    leaving = [asyncio.create_task(leave_at_stop(replicas.leave)) for _ in range(2)]
    await asyncio.sleep(0.05)
    assert replicas.begun == 0
    stopping = asyncio.create_task(asyncio.to_thread(notice.give, LONG_S))
    async with asyncio.timeout(LONG_S):
        while replicas.begun < len(leaving):
            await asyncio.sleep(0.01)
        assert not stopping.done()
        replicas.may_end.set()
        assert await stopping
        await asyncio.gather(*leaving)


async def test_a_stop_waits_no_longer_than_it_may_and_not_where_nobody_keeps_anything(notice: StopNotice) -> None:
    assert notice.give(LONG_S)
    replicas = Replicas()
    leaving = asyncio.create_task(leave_at_stop(replicas.leave))
    async with asyncio.timeout(LONG_S):
        while not replicas.begun:
            await asyncio.sleep(0.01)
    assert not await asyncio.to_thread(notice.give, 0.1)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert notice.give(LONG_S)


async def test_the_end_of_a_supervisor_is_a_notice_and_without_one_nothing_is_waited_for(
    notice: StopNotice, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicas = Replicas()
    replicas.may_end.set()
    other = StopNotice()
    monkeypatch.setenv(VARIABLE, other.environment[VARIABLE])
    leaving = asyncio.create_task(leave_at_stop(replicas.leave))
    await asyncio.sleep(0.05)
    other.close()
    async with asyncio.timeout(LONG_S):
        await leaving
        assert replicas.begun == 1
        await leave_at_stop(replicas.leave)
        monkeypatch.delenv(VARIABLE)
        await leave_at_stop(replicas.leave)
    assert replicas.begun == 1
