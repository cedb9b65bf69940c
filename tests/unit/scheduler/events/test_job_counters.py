"""What the scheduler counts of jobs."""

from __future__ import annotations

from typing import Any

from serve_app.events import Event
from serve_app.scheduler.events.job_counters import UNREAD, JobCounters, read


def told(*story: Any) -> JobCounters:
    counters = JobCounters()
    for seq, (job_id, kind, at_s, *data) in enumerate(story):
        counters.take(Event(job_id, seq, kind, at_s, *data))
    return counters


def test_a_job_that_succeeds_leaves_its_wait_and_its_run():
    counters = told(("a", "queued", 10), ("a", "started", 13), ("a", "success", 20))
    assert (list(read(counters.waits_s)), list(read(counters.runs_s)), dict(counters.ended)) == (
        [3],
        [7],
        {"success": 1},
    )


def test_durations_are_read_once():
    counters = told(("a", "queued", 10), ("a", "started", 13), ("a", "error", 20))
    assert list(read(counters.runs_s)) == [7]
    assert list(read(counters.runs_s)) == []


def test_a_job_cancelled_before_it_starts_has_run_for_no_time_at_all():
    counters = told(("a", "queued", 10), ("a", "cancelled", 15))
    assert (list(counters.runs_s), counters.ended["cancelled"], counters.since_s) == ([], 1, {})


def test_a_job_of_an_earlier_scheduler_is_counted_without_durations():
    counters = told(("a", "success", 20))
    assert (list(counters.runs_s), counters.ended["success"]) == ([], 1)


def test_a_clock_that_goes_back_makes_no_negative_duration():
    assert list(told(("a", "queued", 10), ("a", "started", 9)).waits_s) == [0]


def test_cached_nodes_are_counted_with_those_that_run():
    counters = told(("a", "cached", 1, {"nodes": ["1", "2", "3"]}), ("a", "executing", 1, {"node": "4"}))
    assert counters.nodes == {"cached": 3, "executing": 1}


def test_durations_that_nobody_reads_do_not_gather_without_end():
    story = [("a", kind, at_s) for at_s in range(UNREAD + 5) for kind in ("queued", "started")]
    assert len(told(*story).waits_s) == UNREAD
