"""The lists of unfinished jobs: their order, and that reading their beginning looks at no other job."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.events import data_bytes
from serve_app.scheduler.core.model_files import JobModelFiles
from serve_app.scheduler.core.records import JobRecord
from serve_app.scheduler.jobs import views
from serve_app.scheduler.jobs.unfinished_jobs import UnfinishedJobs
from serve_app.scheduler.jobs.views import queue_view
from serve_app.scheduler.protocol.client import QueueBounds, QueueCount
from serve_app.store.database.changes import JobRow

PROMPT = {"1": {"class_type": "Load", "inputs": {"text": "a" * 1000}}}
PROMPT_BYTES = data_bytes([PROMPT, ("1",), "me", {}])
"""What a whole item takes in memory."""


def record(order: int, number: float | None = None, started_s: float | None = None) -> JobRecord:
    row = JobRow(f"job {order}", order if number is None else number, order, PROMPT, ("1",), "me", {}, 100.0 + order, 1)
    plan: Any = None
    return JobRecord(row, plan, [], started_s, {}, set(), JobModelFiles())


def jobs(count: int, running: int = 0) -> UnfinishedJobs:
    unfinished = UnfinishedJobs()
    for order in range(count):
        job = record(order)
        unfinished.add(job, started=False)
        if order < running:
            job.started_s = 200.0 - order
            unfinished.start(job.row.job_id)
    return unfinished


def ids(listed: Any) -> list[str]:
    return [job.row.job_id for job in listed]


def test_running_jobs_are_listed_by_start_and_waiting_ones_by_priority() -> None:
    unfinished = jobs(5, running=2)
    unfinished.add(record(5, number=-1.0), started=False)
    assert ids(unfinished.running) == ["job 1", "job 0"]
    assert ids(unfinished.waiting) == ["job 5", "job 2", "job 3", "job 4"]
    newest, count = unfinished.by_arrival({"queued", "running"}, descending=True)
    assert (ids(newest), count) == ([f"job {n}" for n in (5, 4, 3, 2, 1, 0)], 6)
    queued, count = unfinished.by_arrival({"queued"}, descending=False)
    assert (ids(queued), count) == ([f"job {n}" for n in (2, 3, 4, 5)], 4)
    running, count = unfinished.by_arrival({"running"}, descending=True)
    assert (ids(running), count) == (["job 1", "job 0"], 2)
    assert unfinished.by_arrival(set(), descending=True)[1] == 0
    assert unfinished.oldest_waiting() is unfinished["job 2"]


def test_a_job_that_ends_is_in_no_list() -> None:
    unfinished = jobs(4, running=2)
    for order in (0, 2, 3, 7):
        unfinished.discard(f"job {order}")
    assert (list(unfinished), ids(unfinished.running), ids(unfinished.waiting)) == (["job 1"], ["job 1"], [])
    assert unfinished.oldest_waiting() is None
    unfinished.start("job 1")
    assert len(unfinished.running) == 1


def test_what_the_queue_carries_is_bounded_in_bytes_and_items() -> None:
    view = queue_view(jobs(10, running=1), QueueBounds(4, 2 * PROMPT_BYTES))
    assert [item.job_id for item in view.running] == ["job 0"]
    assert [item.job_id for item in view.pending] == ["job 1", "job 2", "job 3"]
    assert [bool(item.prompt) for item in (*view.running, *view.pending)] == [True, True, False, False]
    assert view.pending[-1].client_id is None
    assert (view.pending[-1].number, view.pending[-1].created_s) == (3, 103.0)
    assert view.count == QueueCount(1, 9)


def test_a_prompt_beyond_the_bound_is_left_out_and_the_job_is_named() -> None:
    [item] = queue_view(jobs(1), QueueBounds(10, 100)).pending
    assert (item.job_id, item.prompt) == ("job 0", {})


@pytest.mark.parametrize("count", [100, 10_000])
def test_the_queue_looks_at_no_more_prompts_than_it_carries(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    monkeypatch.setattr(views, "data_bytes", lambda data, most: looked.append(most) or data_bytes(data, most))
    view = queue_view(jobs(count), QueueBounds(20, 5 * PROMPT_BYTES))
    assert len(view.pending) == 20
    assert len(looked) == sum(bool(item.prompt) for item in view.pending) + 1 < 10
