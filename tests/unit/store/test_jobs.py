"""The job database: what is written is there, once, and only the newest epoch may write."""

from __future__ import annotations

from dataclasses import replace

import pytest

from serve_app.errors import StaleEpochError
from serve_app.store.changes import JobAccepted, JobEnded, JobRow, JobStarted, OutputRecorded
from serve_app.store.jobs import Jobs

ROW = JobRow("a", 0.0, 0, {"1": {"class_type": "X"}}, ("1",), "client", {"k": [1]}, created_s=5.0, queued_seq=1)


@pytest.fixture
def jobs(tmp_path):
    database = Jobs(f"sqlite:///{tmp_path}/jobs.sqlite")
    yield database
    database.close()


def test_a_job_comes_back_as_it_was_accepted(jobs):
    jobs.write(jobs.acquire("me"), [JobAccepted(ROW)])
    assert jobs.job("a") == ROW
    assert jobs.job("b") is None


def test_a_jobs_life_is_readable_from_its_row(jobs):
    epoch = jobs.acquire("me")
    jobs.write(epoch, [JobAccepted(ROW), JobStarted("a", 6.0, 2)])
    jobs.write(epoch, [OutputRecorded("a", "1", {"images": ["x"]}, 3), JobEnded("a", "success", 7.0, 4, {})])
    row = jobs.job("a")
    assert (row.state, row.started_s, row.started_seq, row.ended_s, row.ended_seq) == ("success", 6.0, 2, 7.0, 4)
    assert row.outputs == {"1": (3, {"images": ["x"]})}
    assert row.ended


def test_unfinished_jobs_come_back_in_submission_order_without_ended_ones(jobs):
    epoch = jobs.acquire("me")
    rows = [replace(ROW, job_id=str(n), order=n, number=-n) for n in (2, 0, 1)]
    jobs.write(epoch, [*map(JobAccepted, rows), JobEnded("1", "error", 9.0, 5, {"message": "bad"})])
    assert [row.job_id for row in jobs.unfinished()] == ["0", "2"]
    assert jobs.next_order() == 3


def test_an_older_epoch_can_change_nothing(jobs):
    old = jobs.acquire("old")
    new = jobs.acquire("new")
    assert new > old
    for attempt in (
        lambda: jobs.write(old, [JobAccepted(ROW)]),
        lambda: jobs.reserve(old, "a", "1", "key", 1, 1),
        lambda: jobs.save_specs(old, "gpu", []),
    ):
        with pytest.raises(StaleEpochError):
            attempt()
    assert jobs.job("a") is None


def test_changes_are_applied_all_or_none(jobs):
    epoch = jobs.acquire("me")
    with pytest.raises(Exception, match="UNIQUE"):
        jobs.write(epoch, [JobAccepted(ROW), JobAccepted(ROW)])
    assert jobs.job("a") is None


def test_counters_are_given_once_and_the_same_again_to_who_had_them(jobs):
    epoch = jobs.acquire("me")
    assert jobs.reserve(epoch, "a", "1", "output/x", 4, 2) == 4
    assert jobs.reserve(epoch, "b", "1", "output/x", 1, 1) == 6
    assert jobs.reserve(epoch, "a", "1", "output/x", 9, 2) == 4
    assert jobs.reserve(epoch, "a", "2", "output/x", 9, 1) == 9
    assert jobs.reserve(epoch, "c", "1", "output/y", 1, 1) == 1


def test_all_survives_closing_and_opening_again(jobs, tmp_path):
    jobs.write(jobs.acquire("me"), [JobAccepted(ROW)])
    jobs.save_specs(1, "gpu", [{"class_type": "X"}])
    jobs.close()
    again = Jobs(f"sqlite:///{tmp_path}/jobs.sqlite")
    assert again.acquire("me") == 2
    assert again.job("a") == ROW
    assert again.specs() == {"gpu": [{"class_type": "X"}]}
    again.close()


def test_a_server_has_started_anew_unless_its_scheduler_merely_came_back(jobs):
    jobs.acquire("server")
    started_s = jobs.started_s()
    jobs.acquire("server")
    assert jobs.started_s() == started_s
    jobs.acquire("another server")
    assert jobs.started_s() > started_s
