"""When a replica's reports go out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from serve_app.graph.plan import TaskId
from serve_app.replica import membership
from serve_app.replica.membership import Membership
from serve_app.scheduler.protocol.cluster_view import HostStats
from serve_app.scheduler.protocol.messages import (
    Free,
    Message,
    NodeFinished,
    NodeProgressed,
    NodeStarted,
    ReplicaInfo,
    Report,
    TaskFinished,
)

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


@pytest.fixture
async def scheduler_and_member() -> AsyncIterator[tuple[Any, Membership]]:
    """A member whose scheduler has taken it."""
    scheduler: Any = OneEpoch()
    member = Membership(scheduler, ReplicaInfo("replica", "cpu", 1), {}, lambda: HOST, Idle())
    life = asyncio.create_task(member.run())
    yield scheduler, member
    life.cancel()
    await asyncio.gather(life, return_exceptions=True)


async def test_what_quick_nodes_do_goes_with_their_task_s_end(
    monkeypatch: pytest.MonkeyPatch, scheduler_and_member: tuple[Any, Membership]
) -> None:
    monkeypatch.setattr(membership, "GATHER_S", 3600.0)
    scheduler, member = scheduler_and_member
    told: list[Report] = [
        NodeStarted(TASK, "1"),
        NodeFinished(TASK, "1", "signature", None),
        NodeStarted(TASK, "2"),
        TaskFinished(TASK),
    ]
    for report in told:
        assert scheduler.calls.empty()
        member.send(report)
        for _ in range(10):
            await asyncio.sleep(0)
    assert await asyncio.wait_for(scheduler.calls.get(), 60) == told


async def test_what_a_node_does_waits_no_longer_than_to_gather(
    scheduler_and_member: tuple[Any, Membership],
) -> None:
    scheduler, member = scheduler_and_member
    member.send(NodeStarted(TASK, "1"))
    assert await asyncio.wait_for(scheduler.calls.get(), 60) == [NodeStarted(TASK, "1")]
    member.send(NodeStarted(TASK, "2"))
    assert await asyncio.wait_for(scheduler.calls.get(), 60) == [NodeStarted(TASK, "2")]


async def test_an_end_does_not_wait_for_more_progress_and_takes_what_waits_along(
    monkeypatch: pytest.MonkeyPatch, scheduler_and_member: tuple[Any, Membership]
) -> None:
    monkeypatch.setattr(membership, "PROGRESS_S", 3600.0)
    scheduler, member = scheduler_and_member
    for step in (1, 2):
        member.send(NodeProgressed(TASK, "1", step, 2))
    for _ in range(10):  # whoever sends them has seen them by now
        await asyncio.sleep(0)
    member.send(TaskFinished(TASK))
    assert await asyncio.wait_for(scheduler.calls.get(), 60) == [
        NodeProgressed(TASK, "1", 2, 2),
        TaskFinished(TASK),
    ]


async def test_a_deferrable_tasks_end_waits_for_others_once_a_call_has_been_made(
    monkeypatch: pytest.MonkeyPatch, scheduler_and_member: tuple[Any, Membership]
) -> None:
    monkeypatch.setattr(membership, "GATHER_S", 3600.0)
    scheduler, member = scheduler_and_member
    first, second, third = (TaskFinished(TaskId(job, 0, 1)) for job in "abc")
    member.send(first, deferrable=True)
    assert await asyncio.wait_for(scheduler.calls.get(), 60) == [first]
    member.send(second, deferrable=True)
    for _ in range(10):
        await asyncio.sleep(0)
    assert scheduler.calls.empty()
    member.send(third)
    assert await asyncio.wait_for(scheduler.calls.get(), 60) == [second, third]


class OneMessage(OneEpoch):
    """One that answers the first poll with a message, and counts polls."""

    polls = 0

    async def poll(self, *arguments: Any) -> list[tuple[int, Message]]:
        self.polls += 1
        if self.polls == 1:
            return [(1, Free(weights=False, results=False))]
        return await super().poll()


@pytest.mark.parametrize(("ask_s", "reports"), [(3600.0, True), (0.0, False)])
async def test_a_replica_that_got_a_message_polls_again_with_its_next_report_or_soon(
    monkeypatch: pytest.MonkeyPatch, ask_s: float, reports: bool
) -> None:
    monkeypatch.setattr(membership, "ASK_S", ask_s)
    scheduler: Any = OneMessage()
    member = Membership(scheduler, ReplicaInfo("replica", "cpu", 1), {}, lambda: HOST, Idle())
    life = asyncio.create_task(member.run())
    try:
        async with asyncio.timeout(30):
            while scheduler.polls == 0:
                await asyncio.sleep(0)
            if reports:
                for _ in range(20):
                    await asyncio.sleep(0)
                assert scheduler.polls == 1
                member.send(TaskFinished(TASK))
            while scheduler.polls < 2:
                await asyncio.sleep(0)
    finally:
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
