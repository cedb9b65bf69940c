"""Lists of jobs: their lengths are counted as jobs end, unfinished jobs come from memory, and brief ones stay small."""

from __future__ import annotations

import asyncio
import itertools
import threading
from dataclasses import replace
from typing import Any

import pytest

from serve_app.errors import InvalidSubmissionError
from serve_app.scheduler.jobs import list_counts
from serve_app.store.database import list_statements
from serve_app.store.database.changes import JobAccepted, JobQuery, JobRow, Sort, Submission
from tests.unit.scheduler.job_pages import page
from tests.unit.scheduler.test_scheduler import UNSTORABLE, Life, impatient, life, living

__all__ = ["impatient", "life"]

UNFINISHED = JobQuery(("queued", "running"), "created", descending=True, brief=True)
ENDED = ("success", "error", "cancelled")


async def check_lists(life: Life, ended: int) -> None:
    """Check that lists are as long as the database counts them, and that each window is cut from the whole."""
    every = (*ENDED, "queued", "running")
    lists: tuple[tuple[tuple[str, ...], Sort], ...] = ((ENDED, "ended"), (("error",), "ended"), (every, "created"))
    for (states, sort), descending, tenant in itertools.product(lists, (False, True), ("", "studio")):
        query = JobQuery(states, sort, descending, tenant=tenant)
        whole, length = life.jobs.keys(query), life.jobs.count(query)
        for offset in range(len(whole) + 2):
            found = await life.scheduler.keys(replace(query, offset=offset, limit=2))
            assert (list(found.keys), found.total) == (whole[offset : offset + 2], length), query
    assert (await life.scheduler.keys(JobQuery(ENDED, limit=0))).total == ended


@pytest.fixture
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what lists are counted by change every second place."""
    monkeypatch.setattr(list_statements, "STRETCH_BITS", dict.fromkeys(list_statements.STRETCH_BITS, 1))
    monkeypatch.setattr(list_counts, "STRETCH_BITS", list_statements.STRETCH_BITS)


@pytest.mark.usefixtures("short_stretches")
async def test_lists_are_what_the_database_has_whatever_ends_fails_is_forgotten_or_begins_again(
    database_url: str,
) -> None:
    async with living(database_url) as life:
        done = [await life.submit("1", tenant="studio" if n % 2 else "") for n in range(5)]
        failed = await life.submit("1", "unsayable")
        for job_id in (*done, failed):
            await life.finish(job_id)
        await check_lists(life, 6)

        life.free.clear()
        running, second, waiting, last = [await life.submit("1", tenant="studio" if n else "") for n in range(4)]
        while (await life.scheduler.count()).running < 2:
            await asyncio.sleep(0.01)
        for job_id in (waiting, running):
            assert await life.scheduler.cancel(job_id)
        with pytest.raises(InvalidSubmissionError):
            await life.submit("1", client_id=UNSTORABLE)
        await check_lists(life, 7)

        await life.scheduler.forget([done[0], running, "unknown"])
        await check_lists(life, 5)
        await life.scheduler.remove([done[1]])
        await check_lists(life, 4)
        unplanned = JobRow("a", 90.0, 90, {"1": {}}, ("1",), None, {}, 1.0, 1)
        life.jobs.write(life.scheduler.epoch, [JobAccepted(unplanned)])
    async with living(database_url) as life:
        for job_id in (second, last, "a"):
            await life.finish(job_id)
        await check_lists(life, 7)
        await life.scheduler.forget(None, "studio")
        await check_lists(life, 4)


@pytest.mark.usefixtures("short_stretches")
async def test_lists_stay_whole_while_what_has_ended_is_counted_anew(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = [await life.submit("1") for _ in range(3)]
    for job_id in done:
        await life.finish(job_id)
    counting, counted = threading.Event(), threading.Event()
    real = life.jobs.ended_counts

    def ended_counts(until_seq: int) -> Any:
        found = real(until_seq)
        counting.set()
        counted.wait()
        return found

    monkeypatch.setattr(life.jobs, "ended_counts", ended_counts)
    forgetting = asyncio.create_task(life.scheduler.forget([done[0]]))
    await asyncio.to_thread(counting.wait)
    await life.finish(await life.submit("1"))
    assert (await life.scheduler.keys(JobQuery(ENDED, limit=0))).total == 4
    counted.set()
    await forgetting
    await check_lists(life, 3)


async def test_no_job_is_counted_and_none_that_waits_is_read_from_the_database(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[JobQuery] = []
    real = life.jobs.keys

    def keys(query: JobQuery) -> Any:
        asked.append(query)
        return real(query)

    monkeypatch.setattr(life.jobs, "keys", keys)
    monkeypatch.setattr(life.jobs, "count", None)
    await life.finish(await life.submit("1"))
    life.free.clear()
    extra = {"extra_pnginfo": {"workflow": {"id": "w-1", "nodes": ["large"]}}, "other": 1}
    ids = [f"550e8400-e29b-41d4-a716-44665544000{number}" for number in range(4)]
    for number, job_id in enumerate(ids):
        prompt = {"1": {"class_type": "Save", "inputs": {"seed": number}}}
        await life.scheduler.submit(Submission(job_id, prompt, ("1",), None, extra))
    while (await life.scheduler.count()).running < 2:
        await asyncio.sleep(0.01)
    found = await page(life.scheduler, UNFINISHED)
    assert ([job.job_id for job in found.jobs], found.total) == (ids[::-1], 4)
    assert {len(job.prompt) for job in found.jobs} == {0}
    assert found.jobs[0].extra_data == {"extra_pnginfo": {"workflow": {"id": "w-1"}}}
    [second] = (await page(life.scheduler, JobQuery(("queued",), "created", offset=1, limit=1))).jobs
    assert second.job_id == ids[3]
    assert asked == []

    every = await page(life.scheduler, JobQuery((*ENDED, "queued", "running"), "created", limit=2, brief=True))
    assert (len(every.jobs), every.total) == (2, 5)
    assert [job.prompt for job in every.jobs] == [{}, {}]
    assert len(asked) == 1
    life.free.set()
