"""What clients see of a real scheduler over a real database: one atomic end, feeds across restarts, lists of jobs."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from serve_app.config.pool import PoolConfig
from serve_app.scheduler.protocol.client import QueueBounds, Reader
from serve_app.scheduler.protocol.messages import Free
from serve_app.store.database.changes import JobQuery, Submission
from tests.unit.replica.cluster import Cluster, cluster
from tests.unit.scheduler.job_pages import page

EVERY = QueueBounds(1000, 1_000_000)

ENDED = JobQuery(("success", "error", "cancelled"))


def prompt(colour: int) -> dict[str, Any]:
    """Return a picture of one colour and the output node that shows it."""
    size = {"width": 8, "height": 8, "batch_size": 1}
    return {
        "1": {"class_type": "EmptyImage", "inputs": {**size, "color": colour}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }


@pytest.fixture
async def running(tmp_path):
    async with cluster(tmp_path, (PoolConfig(name="cpu", runtime=False),)) as running:
        yield running


async def submit(running: Cluster, colour: int, client_id: str | None = "c", **extra: Any) -> str:
    job_id = str(uuid.uuid4())
    await running.scheduler.submit(Submission(job_id, prompt(colour), ("2",), client_id, extra))
    await running.scheduler.answered(job_id)
    return job_id


async def heard(running: Cluster, after: int = 0, token: str = "t") -> list:
    """Return a client's events up to the end of a job."""
    events: list = []
    while not events or not events[-1].last:
        at = events[-1].seq if events else after
        news = await running.scheduler.unsent_events(
            {"c": Reader(token, at)}, running.scheduler.published.feeds.queue.version, 5.0
        )
        events += news.events.get("c", ())
    return events


async def test_a_client_hears_its_job_from_beginning_to_end(running):
    await submit(running, 1)
    kinds = [event.kind for event in await heard(running)]
    assert kinds == ["queued", "started", "cached", "executing", "finished", "executing", "executed", "success"]


async def test_at_every_moment_a_job_is_in_the_queue_or_in_the_history(running):
    job_id = await submit(running, 2)
    waiting = {job_id}
    async with asyncio.timeout(60):
        while waiting:
            queue = await running.scheduler.queue(EVERY)
            found = await page(running.scheduler, ENDED)
            waiting = {job.job_id for job in (*queue.running, *queue.pending)}
            assert job_id in waiting or [job.job_id for job in found.jobs] == [job_id]
            await asyncio.sleep(0.001)
    [ended] = found.jobs
    assert (ended.state, list(ended.outputs)) == ("success", ["2"])


async def test_the_end_is_heard_once_the_queue_is_without_the_job_and_its_outputs_are_there(running):
    job_id = await submit(running, 3)
    await heard(running)
    assert running.scheduler.published.feeds.queue.remaining == 0
    job = await running.scheduler.job(job_id)
    assert (job.state, list(job.outputs)) == ("success", ["2"])


async def test_what_is_cached_is_remembered_with_the_job(running):
    await submit(running, 4)
    first = await heard(running)
    job_id = await submit(running, 4)
    again = await heard(running, after=first[-1].seq)
    assert [event.kind for event in again] == ["queued", "started", "cached", "executed", "success"]
    job = await running.scheduler.job(job_id)
    assert set(job.cached) == {"1", "2"}
    assert list(job.outputs) == ["2"]


async def test_a_socket_goes_on_after_a_restart_of_the_scheduler_without_a_gap_or_a_repetition(running):
    await submit(running, 5)
    first = await heard(running)
    seen = next(event.seq for event in first if event.kind == "executed")
    await running.restart_scheduler()
    assert [event.kind for event in await heard(running, after=seen)] == ["success"]


async def test_results_are_forgotten_once_nothing_runs(running):
    job_id = await submit(running, 11, None)
    await running.finish(job_id)
    held = running.runners["cpu"].results
    assert held.bytes > 0
    await running.scheduler.free(Free(weights=True, results=True))
    while held.bytes:
        await asyncio.sleep(0.01)


async def test_jobs_are_listed_in_windows_and_forgotten(running):
    # One after another: jobs that run together may end in any order, which is that of the list.
    job_ids = [(await running.finish(await submit(running, colour, None))).job_id for colour in (6, 7, 8)]
    found = await page(running.scheduler, JobQuery(ENDED.states, "created", descending=True, offset=1, limit=1))
    assert ([job.job_id for job in found.jobs], found.total) == ([job_ids[1]], 3)
    await running.scheduler.forget([job_ids[0]])
    assert [job.job_id for job in (await page(running.scheduler, ENDED)).jobs] == job_ids[1:]
    assert await running.scheduler.job(job_ids[0]) is None
    await running.scheduler.forget(None)
    assert (await page(running.scheduler, ENDED)).total == 0


async def test_jobs_of_one_saved_workflow_are_found_by_its_id(running):
    workflow = {"extra_pnginfo": {"workflow": {"id": "w-1", "nodes": []}}}
    wanted = await submit(running, 9, None, **workflow)
    await submit(running, 10, None, extra_pnginfo={"workflow": {"id": "w-10"}})
    found = await page(running.scheduler, JobQuery(("queued", "running", "success"), "created", workflow_id="w-1"))
    assert [job.job_id for job in found.jobs] == [wanted]
