"""What the scheduler makes of a wall clock that is set while jobs wait and run."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.scheduler.core import time_limit
from serve_app.scheduler.core.events import CancelAsked
from serve_app.scheduler.core.time_limit import JobTimeLimits
from serve_app.store.database.changes import JobEnded, JobStarted
from tests.unit.scheduler.script import Script, assigned, changes

HOUR_S = 3600.0


def moments(script: Script) -> tuple[float, float, float]:
    """Return when the script's one job was there, started and ended."""
    started: Any
    ended: Any
    [started], [ended] = changes(script.commands, JobStarted), changes(script.commands, JobEnded)
    return 99.0, started.started_s, ended.ended_s


@pytest.mark.parametrize("end", ["success", "cancelled"])
@pytest.mark.parametrize("started_s", [-HOUR_S, 0.0, HOUR_S])
@pytest.mark.parametrize("ended_s", [-HOUR_S, 0.0, HOUR_S])
def test_no_job_takes_less_than_no_time_however_the_clock_is_set(started_s: float, ended_s: float, end: str) -> None:
    script = Script()
    script.job("a")
    script.at_s = 100.0 + started_s
    [(replica, task)] = assigned(script.replica("r1"))
    script.at_s = 100.0 + ended_s
    if end == "success":
        script.run(replica, task)
    else:
        script.apply(CancelAsked("a"))

    assert list(moments(script)) == sorted(moments(script))


def running() -> Script:
    """Return a script with a job "a" that started at 100 s."""
    script = Script()
    script.job("a")
    script.replica("r1")
    return script


def test_a_job_may_run_as_long_as_it_may_by_the_clock_that_nobody_sets() -> None:
    jobs, time_limits = running().machine.jobs, JobTimeLimits({"job_time_s": 60.0})
    time_limits.started(jobs["a"], 101.0, 1.0)
    assert time_limits.failures(jobs, 1.0) == []

    assert time_limits.failures(jobs, 20.0) == []
    assert [job_id for job_id, _ in time_limits.failures(jobs, 62.0)] == ["a"]
    assert time_limits.failures(jobs, 63.0) == []


def test_what_a_job_ran_before_the_scheduler_restarted_counts() -> None:
    jobs = running().machine.jobs

    time_limits = JobTimeLimits({"job_time_s": 60.0})
    time_limits.started(jobs["a"], 159.0, 1.0)
    assert time_limits.failures(jobs, 1.0) == []
    assert [job_id for job_id, _ in time_limits.failures(jobs, 2.5)] == ["a"]


def test_only_jobs_whose_time_is_up_are_looked_at() -> None:
    script = Script()
    for number in range(50):
        script.job(f"job {number}")
    script.replica("r1", slots=50)
    looked = [0]

    class Looked(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            looked[0] += 1
            return super().get(key, default)

    jobs, time_limits = Looked(script.machine.jobs), JobTimeLimits({"job_time_s": 60.0})
    for number, job in enumerate(list(jobs.values())):
        time_limits.started(job, 100.0, float(number))
    assert time_limits.failures(jobs, 50.0) == []
    assert looked == [0]
    for number in range(49):
        time_limits.ended(f"job {number}")
    assert len(time_limits.dues) <= 2 + time_limit.FEW
    assert [job_id for job_id, _ in time_limits.failures(jobs, 1000.0)] == ["job 49"]
    assert looked == [1]


def test_a_job_without_a_limit_is_not_remembered() -> None:
    time_limits = JobTimeLimits({})
    time_limits.started(running().machine.jobs["a"], 100.0, 1.0)
    assert time_limits.dues == []


def test_a_deadline_is_counted_from_the_submission_also_of_what_waits() -> None:
    script, time_limits = Script(), JobTimeLimits({"deadline_s": 60.0})
    script.job("a")
    script.job("b", extra_data={"deadline_s": 10})
    jobs = script.machine.jobs
    for job in jobs.values():  # submitted at 99 s
        time_limits.arrived(job, 104.0, 1.0)
    [(job_id, failure)] = time_limits.failures(jobs, 6.5)
    assert (job_id, failure.exception_type) == ("b", "DeadlineError")
    expected = "the job had not ended 10 s after its submission, the deadline_s of its extra_data; it had not started"
    assert failure.message == expected
    [(job_id, failure)] = time_limits.failures(jobs, 57.0)
    assert (job_id, "the deadline_s of the configuration" in failure.message) == ("a", True)


def test_a_job_both_of_whose_times_are_up_ends_once() -> None:
    jobs, time_limits = running().machine.jobs, JobTimeLimits({"job_time_s": 5.0, "deadline_s": 5.0})
    time_limits.arrived(jobs["a"], 100.0, 1.0)
    time_limits.started(jobs["a"], 100.0, 1.0)
    assert [job_id for job_id, _ in time_limits.failures(jobs, 60.0)] == ["a"]
    time_limits.ended("a")
    assert time_limits.failures(jobs, 70.0) == []
