"""How many replicas a pool's tasks need, those that are to come included."""

from __future__ import annotations

import pytest

from serve_app.scheduler.core.demand import Demand, replicas_by_seconds


@pytest.mark.parametrize(
    ("demand", "wanted"),
    [
        (Demand(0, 0), 0),
        (Demand(1, 0, {"a": 1.0}), 1),
        (Demand(0, 1), 1),
        (Demand(40, 0, {"a": 400.0}), 4),
        (Demand(2, 0, {"a": 400.0}), 1),
    ],
)
def test_replicas_are_as_many_as_drain_the_tasks_in_time_and_no_more_than_these_fill(demand, wanted):
    assert replicas_by_seconds(demand, slots=4, drain_s=30.0) == wanted


@pytest.mark.parametrize(("next_s", "wanted"), [(None, 0), (2.0, 1), (30.0, 1), (600.0, 0)])
def test_a_pool_has_a_replica_for_a_task_that_comes_soon(next_s, wanted):
    assert replicas_by_seconds(Demand(0, 0, {}, next_s), slots=4, drain_s=30.0) == wanted
