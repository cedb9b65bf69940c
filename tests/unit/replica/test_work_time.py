"""A task's measured time excludes loading of weights, however many nodes waited."""

from __future__ import annotations

import pytest

from serve_app.replica.work_time import WorkTime


def test_time_in_which_any_node_waits_for_weights_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 10.0
    monkeypatch.setattr("serve_app.replica.work_time.perf_counter", lambda: now_s)
    work = WorkTime()
    now_s = 12.0
    with work.loading():
        now_s = 15.0
        with work.loading():
            now_s = 16.0
        assert work.seconds == 2.0
        now_s = 20.0
    now_s = 21.0
    assert work.seconds == 3.0
