"""What the scheduler keeps of what nodes have shown is bounded by bytes, and not only by how many there are."""

from __future__ import annotations

import gc
import tracemalloc

from serve_app.config.limits import EventLimits
from serve_app.events import Event, data_bytes
from serve_app.limits import REFUSALS
from serve_app.scheduler.core.events import Publish
from serve_app.scheduler.core.results import Results
from serve_app.scheduler.events.client_feeds import Feed, Feeds
from serve_app.scheduler.events.published_jobs import PublishedJobs
from serve_app.store.database.changes import JobRow
from tests.unit.scheduler.script import Script

UI = {"text": ["a" * 10_000]}


def shown(seq: int, job_id: str = "a") -> Event:
    return Event(job_id, seq, "executed", 0.0, {"node": "1", "output": UI})


def test_what_output_nodes_showed_is_remembered_up_to_a_number_of_bytes() -> None:
    results = Results(ui_bytes=50_000)
    for i in range(10):
        results.add_holder("r1", str(i), UI)
    assert [i for i in range(10) if results.ui(str(i))] == [6, 7, 8, 9]
    results.add_holder("r1", "9", {})
    results.add_holder("r1", "10", UI)
    assert [i for i in range(11) if results.ui(str(i)) is not None] == [6, 7, 8, 9, 10]


def test_what_made_nodes_showed_is_remembered_up_to_a_number_of_bytes() -> None:
    results = Results(ui_bytes=50_000)
    for i in range(10):
        results.add_expanded(str(i // 2), f".{i}", UI)
        results.add_expanded(str(i // 2), f".{i}", UI)
    assert [sorted(results.expanded(str(i))) for i in range(5)] == [[], [], [], [".6", ".7"], [".8", ".9"]]


async def test_an_absent_clients_events_are_kept_up_to_a_number_of_bytes() -> None:
    feed, dropped = Feed(EventLimits(feed_bytes=50_000)), REFUSALS["events.feed_bytes"]
    for seq in range(1, 11):
        feed.put(shown(seq))
    assert [event.seq for event in feed.unread] == [7, 8, 9, 10]
    assert REFUSALS["events.feed_bytes"] == dropped + 6
    assert feed.bytes == 4 * data_bytes(shown(1).data)
    assert [event.seq for event in feed.after(9)] == [10]
    feed.after(10)
    assert feed.bytes == 0
    feed.put(Event("a", 11, "executed", 0.0, {"node": "1", "output": {"text": ["a" * 100_000]}}))
    assert len(feed.unread) == 1


async def test_feeds_that_take_too_much_together_are_forgotten_the_oldest_first() -> None:
    feeds, forgotten = Feeds(1, EventLimits(feeds_bytes=25_000)), REFUSALS["events.feeds_bytes"]
    for client in "abc":
        feeds.put(client, shown(5))
    feeds.forget_idle()
    assert list(feeds.feeds) == ["b", "c"]
    assert REFUSALS["events.feeds_bytes"] == forgotten + 1


def row(job_id: str) -> JobRow:
    return JobRow(job_id, 0.0, 0, {}, ("1",), None, {}, 0.0, 1)


async def test_streams_of_ended_jobs_are_kept_up_to_a_number_of_bytes() -> None:
    published = PublishedJobs(1, EventLimits(streams_bytes=35_000))
    for i in range(5):
        job_id = f"job {i}"
        for event in (Event(job_id, 1, "queued", 0.0), shown(2, job_id), Event(job_id, 3, "success", 0.0)):
            published.publish(event)
    assert [i for i in range(5) if published.stream(f"job {i}")] == [2, 3, 4]
    assert 0.8 < published.use["events.streams_bytes"] <= 1.0
    published.rebuild(row("job 0"))
    assert [i for i in range(5) if published.stream(f"job {i}")] == [0, 2, 3, 4]
    published.forget(None)
    assert published.streams_bytes == 0


def wait(script: Script, published: PublishedJobs, count: int) -> None:
    """Have more jobs wait, of three nodes each, and clients know of them."""
    for _ in range(count):
        commands = script.job(f"job {script.order}", seed=script.order)
        published.arrives(script.machine.jobs[f"job {script.order - 1}"])
        for command in commands:
            if isinstance(command, Publish):
                published.publish(command.event)
        script.commands.clear()


async def test_a_job_that_waits_takes_few_bytes_and_few_objects_that_a_collection_walks() -> None:
    script, published, jobs = Script(), PublishedJobs(1), 100
    wait(script, published, jobs)
    gc.collect()
    objects = len(gc.get_objects())
    tracemalloc.start()
    wait(script, published, jobs)
    took_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    gc.collect()
    assert took_bytes / jobs < 6_000
    assert (len(gc.get_objects()) - objects) / jobs < 28
