"""How long a running node's steps take still, from the times of its reports alone."""

from __future__ import annotations

import pytest

from serve_app.events import Event
from serve_app.scheduler.jobs.views import MEASURED_REPORTS, remaining_s


def reports(*at: tuple[float, int], steps: int = 20) -> list[Event]:
    """Return reports newest first, from (time, steps done) in order."""
    data = [(at_s, {"node": "3", "value": value, "max": steps}) for at_s, value in at]
    return [Event("job", seq, "progress", at_s, one) for seq, (at_s, one) in enumerate(data)][::-1]


@pytest.mark.parametrize(
    "known", [(), ((9.0, 0),), ((9.0, 1),), ((0.0, 0), (9.0, 1)), ((9.0, 2),), ((8.0, 2), (9.0, 2))]
)
def test_nothing_is_said_before_two_steps_are_measured(known: list[tuple[float, int]]) -> None:
    assert remaining_s(reports(*known)) is None


def test_what_came_before_the_first_step_was_done_is_not_counted() -> None:
    assert remaining_s(reports((0.0, 0), (60.0, 1), (62.0, 2))) == 36.0


def test_reports_of_several_steps_at_once_count_them_all() -> None:
    assert remaining_s(reports((10.0, 4), (25.0, 9), (26.0, 10))) == pytest.approx(10 * 16 / 6, abs=0.1)


def test_it_goes_down_until_the_next_report_and_not_below_nothing() -> None:
    known = reports((10.0, 18), (14.0, 19))
    assert [remaining_s(known, now_s) for now_s in (13.0, 14.0, 15.5, 99.0)] == [4.0, 4.0, 2.5, 0.0]


def test_a_node_that_samples_again_begins_anew() -> None:
    assert remaining_s(reports((0.0, 18), (1.0, 19), (100.0, 1))) is None
    assert remaining_s(reports((0.0, 1), (1.0, 2), (100.0, 5), (110.0, 6))[:2] + reports((0.0, 9), steps=10)) == 140.0


def test_the_rate_is_that_of_the_last_reports() -> None:
    slow, fast = [(10.0 * i, 1 + i) for i in range(40)], [(400.0 + i, 41 + i) for i in range(MEASURED_REPORTS)]
    assert remaining_s(reports(*slow, *fast, steps=100)) == 100 - fast[-1][1]


def test_a_clock_that_was_set_back_says_nothing_negative() -> None:
    assert remaining_s(reports((10.0, 1), (5.0, 2))) == 0.0
