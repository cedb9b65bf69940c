"""What the scheduler counts of jobs."""

from __future__ import annotations

from typing import Any

from serve_app.events import Event, Kind
from serve_app.scheduler.tally import UNREAD, Tally, read


def told(*story: tuple[str, Kind, float] | tuple[str, Kind, float, dict[str, Any]]) -> Tally:
    tally = Tally()
    for seq, (job_id, kind, at_s, *data) in enumerate(story):
        tally.take(Event(job_id, seq, kind, at_s, *data))
    return tally


def test_a_job_that_succeeds_leaves_its_wait_and_its_run():
    tally = told(("a", "queued", 10), ("a", "started", 13), ("a", "success", 20))
    assert (list(read(tally.waits_s)), list(read(tally.runs_s)), dict(tally.ended)) == ([3], [7], {"success": 1})


def test_durations_are_read_once():
    tally = told(("a", "queued", 10), ("a", "started", 13), ("a", "error", 20))
    assert list(read(tally.runs_s)) == [7]
    assert list(read(tally.runs_s)) == []


def test_a_job_cancelled_before_it_starts_has_run_for_no_time_at_all():
    tally = told(("a", "queued", 10), ("a", "cancelled", 15))
    assert (list(tally.runs_s), tally.ended["cancelled"], tally._since_s) == ([], 1, {})


def test_a_job_of_an_earlier_scheduler_is_counted_without_durations():
    tally = told(("a", "success", 20))
    assert (list(tally.runs_s), tally.ended["success"]) == ([], 1)


def test_a_clock_that_goes_back_makes_no_negative_duration():
    assert list(told(("a", "queued", 10), ("a", "started", 9)).waits_s) == [0]


def test_nodes_that_need_not_run_are_counted_beside_those_that_do():
    tally = told(("a", "cached", 1, {"nodes": ["1", "2", "3"]}), ("a", "executing", 1, {"node": "4"}))
    assert tally.nodes == {"cached": 3, "executing": 1}


def test_durations_that_nobody_reads_do_not_gather_without_end():
    story = [("a", kind, at_s) for at_s in range(UNREAD + 5) for kind in ("queued", "started")]
    assert len(told(*story).waits_s) == UNREAD
