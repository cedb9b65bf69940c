"""When a replica's reports go out."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serve_app.graph.plan import TaskId
from serve_app.replica import membership
from serve_app.replica.membership import Membership
from serve_app.scheduler.cluster_view import HostStats
from serve_app.scheduler.messages import Message, NodeProgressed, ReplicaInfo, Report, TaskFinished

HOST = HostStats("host", 1, 1, 1, ())
TASK = TaskId("job", 0, 1)


class OneEpoch:
    """A scheduler that has no messages and keeps what is reported, call by call."""

    def __init__(self) -> None:
        self.calls: asyncio.Queue[list[Report]] = asyncio.Queue()

    async def join(self, *arguments: Any) -> int:
        return 1

    async def poll(self, *arguments: Any) -> list[tuple[int, Message]]:
        await asyncio.Event().wait()
        return []

    async def report(self, replica_id: str, epoch: int, reports: list[Report], host: HostStats | None) -> None:
        if reports:
            self.calls.put_nowait(reports)


class Idle:
    def joined(self) -> None: ...

    def take(self, message: Message) -> None: ...

    async def lost_touch(self) -> None: ...


async def test_an_end_does_not_wait_for_more_progress_and_takes_what_waits_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(membership, "PROGRESS_S", 3600.0)
    scheduler: Any = OneEpoch()
    member = Membership(scheduler, ReplicaInfo("replica", "cpu", 1), {}, lambda: HOST, Idle())
    life = asyncio.create_task(member.run())
    try:
        for step in (1, 2):
            member.say(NodeProgressed(TASK, "1", step, 2))
        for _ in range(10):  # whoever sends them has seen them by now
            await asyncio.sleep(0)
        member.say(TaskFinished(TASK))
        assert await asyncio.wait_for(scheduler.calls.get(), 60) == [
            NodeProgressed(TASK, "1", 2, 2),
            TaskFinished(TASK),
        ]
    finally:
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
