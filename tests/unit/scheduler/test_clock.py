"""What the scheduler makes of a wall clock that is set while jobs wait and run."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.scheduler.stimuli import CancelAsked
from serve_app.scheduler.time_limit import Overtime
from serve_app.store.changes import JobEnded, JobStarted
from tests.unit.scheduler.script import Script, assigned, changes

HOUR_S = 3600.0


def moments(script: Script) -> tuple[float, float, float]:
    """Return when the script's one job was there, started and ended."""
    started: Any
    ended: Any
    [started], [ended] = changes(script.commands, JobStarted), changes(script.commands, JobEnded)
    return 99.0, started.at_s, ended.at_s


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
        script.feed(CancelAsked("a"))

    assert list(moments(script)) == sorted(moments(script))


def running() -> Script:
    """Return a script with a job "a" that started at 100 s."""
    script = Script()
    script.job("a")
    script.replica("r1")
    return script


@pytest.mark.parametrize("jump_s", [-HOUR_S, HOUR_S])
def test_a_job_may_run_as_long_as_it_may_however_the_clock_is_set(jump_s: float) -> None:
    jobs, overtime = running().machine.jobs, Overtime(60.0)
    assert overtime.failures(jobs, 101.0, 1.0) == []

    assert overtime.failures(jobs, 120.0 + jump_s, 20.0) == []
    assert [job_id for job_id, _ in overtime.failures(jobs, 162.0 + jump_s, 62.0)] == ["a"]


def test_what_a_job_ran_before_the_scheduler_restarted_counts() -> None:
    jobs = running().machine.jobs

    assert Overtime(60.0).failures(jobs, 159.0, 1.0) == []
    assert [job_id for job_id, _ in Overtime(60.0).failures(jobs, 161.0, 1.0)] == ["a"]
