"""Ended jobs by time, and tenants' use by day, on both databases."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from serve_app.events import Ending, Failure
from serve_app.store.database.activity import DAY_S, ActivitySlot, ReadActivity, ReadTenantDays, TenantDay
from serve_app.store.database.changes import (
    Change,
    CountersReserved,
    JobAccepted,
    JobEnded,
    JobRow,
    JobStarted,
    TenantUsed,
)
from serve_app.store.database.jobs import Jobs
from serve_app.store.files.reserved import Contents

NOON_S = 20_000 * DAY_S + 43_200.0


@pytest.fixture
def jobs(database_url: str) -> Iterator[Jobs]:
    database = Jobs(database_url)
    yield database
    database.close()


def ended(order: int, state: Ending, begun_s: float, ended_s: float, wait_s: float | None, tenant: str) -> list[Change]:
    """Return the changes of a job; wait_s None: it never started."""
    job_id = f"job-{order}"
    row = JobRow(job_id, 0.0, order, {}, (), None, {}, created_s=begun_s, queued_seq=10 * order, tenant=tenant)
    started = [] if wait_s is None else [JobStarted(job_id, begun_s + wait_s, 10 * order + 1, ())]
    return [JobAccepted(row), *started, JobEnded(job_id, state, ended_s, 10 * order + 3, Failure())]


def test_ended_jobs_are_counted_by_slot_and_use_by_day(jobs: Jobs) -> None:
    epoch = jobs.acquire("me")
    jobs.write(
        epoch,
        [
            *ended(1, "success", NOON_S, NOON_S + 99.0, 10.0, "a"),
            *ended(2, "error", NOON_S, NOON_S + 50.0, 30.0, "b"),
            *ended(3, "cancelled", NOON_S, NOON_S + 20.0, None, "b"),
            *ended(4, "success", NOON_S, NOON_S + 300.0, 0.0, "a"),
            *ended(5, "success", NOON_S - DAY_S, NOON_S - DAY_S + 1.0, 0.0, "a"),
            JobAccepted(JobRow("waits", 0.0, 6, {}, (), None, {}, created_s=NOON_S, queued_seq=90)),
            TenantUsed("job-1", "a", 20_000, 7.5),
        ],
    )
    assert jobs.query(epoch, ReadActivity(NOON_S, 100)) == (
        ActivitySlot(NOON_S, success=1, error=1, cancelled=1, wait_s=20.0, run_s=54.5),
        ActivitySlot(NOON_S + 300.0, success=1, run_s=300.0),
    )
    assert jobs.query(epoch, ReadTenantDays(19_999)) == (
        TenantDay(19_999, "a", 1, 0.0, 0),
        TenantDay(20_000, "a", 2, 7.5, 0),
        TenantDay(20_000, "b", 2, 0.0, 0),
    )
    assert jobs.query(epoch, ReadTenantDays(20_001)) == ()


def test_what_jobs_save_counts_once_for_its_tenants_day_and_previews_do_not(jobs: Jobs) -> None:
    epoch, today = jobs.acquire("me"), int(time.time() // DAY_S)

    def saves(job_id: str, key: str, size: int) -> CountersReserved:
        return CountersReserved(job_id, "9", key, 1, Contents("_.png", ("digest",), size))

    jobs.write(epoch, [saves("1@a", "output/@a/x", 100), saves("2@a", "output/@a/x", 20), saves("3", "output/x", 7)])
    jobs.write(epoch, [saves("1@a", "output/@a/x", 100), saves("2@a", "temp/@a/x", 1000)])
    jobs.write(epoch, [TenantUsed("1@a", "a", today, 2.5)])
    found = jobs.query(epoch, ReadTenantDays(today))
    assert [(use.tenant, use.gpu_s, use.saved_bytes) for use in found] == [("", 0.0, 7), ("a", 2.5, 120)]
