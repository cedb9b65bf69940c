"""When a replica's messages are due, and how much of what clients say waits for one."""

from __future__ import annotations

import asyncio

import pytest

from serve_app.graph.plan import Task, TaskId
from serve_app.packs.routes import PackFrame
from serve_app.scheduler.protocol.messages import Assign, Free, SocketFrame
from serve_app.scheduler.replicas import mailbox as module
from serve_app.scheduler.replicas.mailbox import FRAME_BYTES, Mailbox

FREE = Free(weights=True, results=True)


def task(*, deferrable: bool) -> Assign:
    return Assign(Task(TaskId("job", 0, 1), {}, (), {}, frozenset(), {}, {}, deferrable=deferrable))


def test_what_clients_say_waits_up_to_a_size_and_messages_of_the_scheduler_count_for_nothing() -> None:
    mailbox = Mailbox()
    for _ in range(1000):
        mailbox.put(FREE)
    while mailbox.has_room():
        mailbox.put(SocketFrame("socket", PackFrame(bytes(1_000_000))))
    said = [m for _, m in mailbox.messages if isinstance(m, SocketFrame)]
    assert len(said) == -(-FRAME_BYTES // 1_000_000)
    mailbox.acknowledge(mailbox.cursor - 1)
    assert mailbox.has_room()


async def test_a_deferrable_message_waits_a_moment_if_something_has_just_been_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "GATHER_S", 3600.0)
    mailbox = Mailbox()
    mailbox.put(task(deferrable=True))
    assert mailbox.due.is_set(), "nothing has gone yet"
    mailbox.acknowledge(mailbox.take()[-1][0])
    mailbox.put(task(deferrable=True))
    mailbox.put(task(deferrable=True))
    assert not mailbox.due.is_set()
    assert len(mailbox.take()) == 2
    monkeypatch.setattr(module, "GATHER_S", 0.0)
    mailbox.put(task(deferrable=True))
    assert mailbox.due.is_set(), "the moment is over"


async def test_a_deferrable_message_waits_no_longer_than_that() -> None:
    mailbox = Mailbox()
    mailbox.take()
    mailbox.put(task(deferrable=True))
    await asyncio.wait_for(mailbox.due.wait(), 60)


@pytest.mark.parametrize("message", [FREE, task(deferrable=False)])
async def test_an_urgent_message_is_due_at_once_and_takes_deferrable_ones_along(
    monkeypatch: pytest.MonkeyPatch, message: Free | Assign
) -> None:
    monkeypatch.setattr(module, "GATHER_S", 3600.0)
    mailbox = Mailbox()
    mailbox.take()
    mailbox.put(task(deferrable=True))
    assert not mailbox.due.is_set()
    mailbox.put(message)
    assert mailbox.due.is_set()
    assert [told for _, told in mailbox.take()] == [task(deferrable=True), message]
    assert not mailbox.due.is_set()


async def test_an_unacknowledged_message_is_due_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GATHER_S", 3600.0)
    mailbox = Mailbox()
    mailbox.put(FREE)
    [(cursor, _)] = mailbox.take()
    mailbox.put(task(deferrable=True))
    mailbox.acknowledge(cursor)
    assert not mailbox.due.is_set()
    mailbox.acknowledge(0)
    assert not mailbox.due.is_set(), "what is read is forgotten"
    mailbox.put(FREE)
    told = mailbox.take()
    mailbox.acknowledge(told[0][0])
    assert mailbox.due.is_set()
    assert mailbox.take() == told[1:]
