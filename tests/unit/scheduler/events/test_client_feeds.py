"""Clients' feeds: who is told what, in which order, and what happens when sockets come and go."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NoReturn

import pytest

from serve_app.config.limits import EventLimits
from serve_app.events import Event
from serve_app.limits import REFUSALS
from serve_app.scheduler.events import client_feeds as module
from serve_app.scheduler.events.client_feeds import Feed, Feeds
from serve_app.scheduler.protocol.client import Reader


def event(seq: int, kind: str = "executing", job_id: str = "a", node: str = "1", **data) -> Event:
    return Event(job_id, seq, kind, 0.0, {"node": node, **data})  # type: ignore[arg-type]


async def unsent_events(
    feeds: Feeds, token: str = "t", after: int = 0, queue: int | None = None, timeout_s: float = 0.0
):
    version = feeds.queue.version if queue is None else queue
    return await feeds.unsent_events({"c": Reader(token, after)}, version, timeout_s)


async def seqs(feeds: Feeds, after: int = 0) -> list[int]:
    return [e.seq for e in (await unsent_events(feeds, after=after)).events.get("c", ())]


async def test_what_is_not_sent_is_given_again_and_what_is_sent_is_not():
    feeds = Feeds(epoch=1)
    for seq in (5, 7, 9):
        feeds.put("c", event(seq))
    assert await seqs(feeds) == [5, 7, 9] == await seqs(feeds)
    assert await seqs(feeds, after=7) == [9]
    assert await seqs(feeds, after=0) == [9]
    assert feeds.attach("c", "newer").after == 7


async def test_a_poll_waits_for_the_first_event():
    feeds = Feeds(epoch=1)
    poll = asyncio.create_task(unsent_events(feeds, timeout_s=5))
    await asyncio.sleep(0)
    assert not poll.done()
    feeds.put("c", event(5))
    assert [e.seq for e in (await poll).events["c"]] == [5]


async def test_a_poll_ends_when_the_queues_length_changes():
    feeds = Feeds(epoch=1)
    poll = asyncio.create_task(unsent_events(feeds, timeout_s=5))
    await asyncio.sleep(0)
    feeds.queue_is(3)
    told = await poll
    assert (told.events, told.queue.remaining) == ({}, 3)
    assert (await unsent_events(feeds, queue=told.queue.version)).queue == told.queue


async def test_a_jobs_beginning_and_the_queues_length_wait_a_moment_for_what_its_nodes_do(
    monkeypatch: pytest.MonkeyPatch,
):
    feeds = Feeds(epoch=1)
    monkeypatch.setattr(module, "GATHER_S", 3600.0)
    feeds.hold("a", "c")
    poll = asyncio.create_task(unsent_events(feeds, timeout_s=60))
    await asyncio.sleep(0)
    for seq, kind in enumerate(("queued", "started", "cached"), start=5):
        feeds.put("c", event(seq, kind))
    feeds.queue_is(1)
    feeds.release("a")
    for _ in range(10):
        await asyncio.sleep(0)
    assert not poll.done()
    feeds.put("c", event(8))
    told = await asyncio.wait_for(poll, 60)
    assert [e.seq for e in told.events["c"]] == [5, 6, 7, 8]
    assert told.queue.remaining == 1


async def test_a_jobs_beginning_waits_no_longer_than_that():
    feeds = Feeds(epoch=1)
    for seq in (5, 6):
        poll = asyncio.create_task(unsent_events(feeds, after=seq - 1, timeout_s=60))
        await asyncio.sleep(0)
        feeds.put("c", event(seq, "started"))
        assert [e.seq for e in (await asyncio.wait_for(poll, 30)).events["c"]] == [seq]


async def test_a_delayed_start_event_is_sent_as_soon_as_a_node_runs(monkeypatch: pytest.MonkeyPatch):
    feeds = Feeds(epoch=1)
    monkeypatch.setattr(module, "GATHER_S", 3600.0)
    feeds.hold("a", "c")
    poll = asyncio.create_task(unsent_events(feeds, timeout_s=60))
    await asyncio.sleep(0)
    feeds.put("c", event(5, "started"))
    feeds.put("c", event(6))
    feeds.release("a")
    assert [e.seq for e in (await asyncio.wait_for(poll, 30)).events["c"]] == [5, 6]


async def test_to_release_a_job_looks_through_no_feed():
    class Unread(deque[Event]):
        def __iter__(self) -> NoReturn:
            raise AssertionError("all that is unread was looked through")

    feeds = Feeds(epoch=1)
    feeds.hold("a", "c")
    feeds.feeds["c"].unread = Unread()
    feeds.put("c", event(5, "queued"))
    feeds.release("a")
    assert not feeds.holds("a")


async def test_a_poll_that_nothing_answers_comes_back_empty():
    assert (await unsent_events(Feeds(epoch=1), timeout_s=0.01)).events == {}


async def test_versions_of_the_queue_of_another_life_are_never_this_ones():
    old, new = Feeds(epoch=1), Feeds(epoch=2)
    for _ in range(3):
        old.queue_is(0)
    assert old.queue.version < new.queue.version


async def test_events_of_a_job_and_all_behind_them_wait_until_its_submission_is_answered():
    feeds = Feeds(epoch=1)
    feeds.put("c", event(1, job_id="earlier"))
    feeds.hold("a", "c")
    feeds.put("c", event(2, job_id="a"))
    feeds.put("c", event(3, job_id="earlier"))
    assert await seqs(feeds) == [1]
    feeds.release("a")
    assert await seqs(feeds) == [1, 2, 3]
    feeds.release("a")


async def test_a_poll_names_the_clients_that_wait_for_an_answer_whatever_ended_it():
    feeds = Feeds(epoch=1)
    feeds.hold("a", "c")
    readers = {name: Reader(name, 0) for name in ("c", "other")}
    polling = asyncio.create_task(feeds.unsent_events(readers, feeds.queue.version, 60))
    await asyncio.sleep(0)
    feeds.put("other", event(1, job_id="b"))
    assert (await polling).held == {"c"}
    feeds.release("a")
    assert (await feeds.unsent_events(readers, -1, 0)).held == frozenset()


async def test_a_socket_begins_where_the_one_before_it_was():
    feeds = Feeds(epoch=1)
    feeds.attach("c", "first")
    feeds.put("c", event(5))
    await unsent_events(feeds, "first", after=5)
    assert feeds.attach("c", "second").after == 5


async def test_a_socket_that_a_newer_one_replaces_is_closed_and_gets_no_events():
    feeds = Feeds(epoch=1)
    feeds.attach("c", "old")
    poll = asyncio.create_task(unsent_events(feeds, "old", timeout_s=5))
    await asyncio.sleep(0)
    feeds.attach("c", "new")
    feeds.put("c", event(5))
    assert (await poll).replaced == {"c"}
    told = await unsent_events(feeds, "old")
    assert (told.replaced, told.events) == ({"c"}, {})
    assert [e.seq for e in (await unsent_events(feeds, "new")).events["c"]] == [5]


async def test_what_a_replaced_socket_had_sent_counts_as_sent():
    feeds = Feeds(epoch=1)
    feeds.attach("c", "old")
    for seq in (5, 6):
        feeds.put("c", event(seq))
    feeds.attach("c", "new")
    await unsent_events(feeds, "old", after=5)
    assert [e.seq for e in (await unsent_events(feeds, "new")).events["c"]] == [6]


async def test_a_socket_of_an_earlier_life_goes_on_where_it_was():
    feeds = Feeds(epoch=2)
    for seq in (5, 6):
        feeds.put("c", event(seq))
    told = await unsent_events(feeds, "kept", after=5)
    assert ([e.seq for e in told.events["c"]], told.replaced) == ([6], frozenset())


def test_only_the_newest_progress_of_a_node_waits():
    feed = Feed()
    for seq, node in [(1, "3"), (2, "3"), (3, "4"), (4, "3"), (5, "3")]:
        feed.put(event(seq, "progress", node=node))
    assert [e.seq for e in feed.after(0)] == [3, 5]


def test_of_pictures_between_progress_only_the_newest_waits_too():
    feed = Feed()
    for seq, kind in enumerate(["executing", *["progress", "preview"] * 3, "finished", "progress", "preview"], 1):
        feed.put(event(seq, kind, node="3"))
    assert [e.seq for e in feed.after(0)] == [1, 6, 7, 8, 9, 10]


def test_a_client_that_never_comes_costs_no_more_than_the_newest_events():
    feed, dropped = Feed(EventLimits(feed_events=20)), REFUSALS["events.feed_events"]
    for seq in range(30):
        feed.put(event(seq))
    assert len(feed.unread) == 20
    assert feed.after(0)[-1].seq == 29
    assert REFUSALS["events.feed_events"] == dropped + 10


async def test_a_feed_that_nobody_touches_is_forgotten(monkeypatch: pytest.MonkeyPatch):
    feeds = Feeds(epoch=1)
    feeds.put("c", event(5))
    feeds.forget_idle()
    assert await seqs(feeds) == [5]
    monkeypatch.setattr(module, "IDLE_S", -1.0)
    feeds.forget_idle()
    assert await seqs(feeds) == []


async def test_an_event_costs_a_look_at_its_own_clients_feed_alone(monkeypatch: pytest.MonkeyPatch):
    looked: list[int] = []
    real = Feed.after
    monkeypatch.setattr(Feed, "after", lambda feed, seq: looked.append(seq) or real(feed, seq))
    feeds = Feeds(epoch=1)
    readers = {f"client {number}": Reader("t", 0) for number in range(500)}
    polls = [asyncio.create_task(feeds.unsent_events(readers, feeds.queue.version, 5.0)) for _ in range(2)]
    await asyncio.sleep(0)
    assert len(looked) == 2 * 500
    feeds.put("somebody else", event(1))
    await asyncio.sleep(0)
    assert len(looked) == 2 * 500
    feeds.put("client 7", event(2))
    assert [list((await poll).events) for poll in polls] == [["client 7"]] * 2
    assert len(looked) == 2 * 500 + 2
    assert not feeds.polls
