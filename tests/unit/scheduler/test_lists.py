"""Lists of jobs: their lengths are counted as jobs end, unfinished jobs come from memory, and brief ones stay small."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serve_app.errors import InvalidSubmissionError
from serve_app.scheduler.client import Submission
from serve_app.store.changes import JobQuery
from tests.unit.scheduler.job_pages import page
from tests.unit.scheduler.test_scheduler import UNSTORABLE, Life, impatient, life

__all__ = ["impatient", "life"]

UNFINISHED = JobQuery(("queued", "running"), "created", descending=True, brief=True)
ENDED = ("success", "error", "cancelled")


async def check_totals(life: Life, expected: int) -> None:
    """Check that what is counted on is what the database counts."""
    for states in (ENDED, ("success",), ("error",), ("cancelled",)):
        for limit in (0, 2, None):
            found = await page(life.scheduler, JobQuery(states, limit=limit))
            assert found.total == life.jobs.page(JobQuery(states))[1], states
            assert len(found.jobs) == (found.total if limit is None else min(limit, found.total))
    assert (await page(life.scheduler, JobQuery(ENDED, limit=0))).total == expected


async def test_the_lengths_of_lists_are_what_the_database_counts(life: Life) -> None:
    done = [await life.submit("1") for _ in range(3)]
    failed = await life.submit("1", "unsayable")
    for job_id in (*done, failed):
        await life.finish(job_id)
    await check_totals(life, 4)

    life.free.clear()
    running, second, waiting = [await life.submit("1") for _ in range(3)]
    while (await life.scheduler.count()).running < 2:
        await asyncio.sleep(0.01)
    for job_id in (waiting, running):
        assert await life.scheduler.cancel(job_id)
    with pytest.raises(InvalidSubmissionError):
        await life.submit("1", client_id=UNSTORABLE)
    await check_totals(life, 5)

    await life.scheduler.forget([done[0], running, "unknown"])
    await check_totals(life, 3)
    life.free.set()
    await life.finish(second)
    await check_totals(life, 4)


async def test_no_job_is_counted_and_none_that_waits_is_read_from_the_database(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[JobQuery, int | None]] = []
    real = life.jobs.keys

    def keys(query: JobQuery, total: int | None = None) -> Any:
        asked.append((query, total))
        return real(query, total)

    monkeypatch.setattr(life.jobs, "keys", keys)
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
    assert [total for _, total in asked] == [5]
    life.free.set()
