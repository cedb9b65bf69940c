"""Who is let into the queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from serve_app.errors import InvalidGraphError, InvalidSubmissionError, QueueFullError
from serve_app.graph.plan import Pool
from serve_app.graph.spec import NodeSpec
from serve_app.scheduler.jobs.admission import Admission, AdmissionRules
from serve_app.scheduler.jobs.repeats import check_repeat
from serve_app.store.database.changes import Submission

SPEC = NodeSpec("Save", (), (), (), (), output_node=True)


def admission(*pools: Pool, **settings: Any) -> Admission:
    given = {"max_queue": 10, "client_share": 0.8, "client_priority": True, "share_results": True, "strict": False}
    rules = AdmissionRules(**{**given, "max_priority": 100, **settings})
    return Admission(rules, pools or [Pool("cpu", False)], lambda: {"Save": SPEC}, lambda *_: "", next_order=0)


async def admit(door: Admission, waiting: Sequence[str | None], **fields: Any) -> float:
    submission = Submission("job", {"1": {"class_type": "Save", "inputs": {}}}, ("1",), **fields)
    row, _ = await door.admit(submission, lambda _: Counter(("", client) for client in waiting), lambda: 1)
    return row.number


async def test_one_client_cannot_take_the_whole_queue() -> None:
    flood: list[str | None] = ["greedy"] * 8
    with pytest.raises(QueueFullError, match="8 jobs of this client wait"):
        await admit(admission(), flood, client_id="greedy")
    assert await admit(admission(), flood, client_id="other") == 0
    assert await admit(admission(), flood) == 0


async def test_jobs_without_a_client_id_are_one_clients() -> None:
    with pytest.raises(QueueFullError, match="without a client_id"):
        await admit(admission(), [None] * 8)


async def test_a_full_queue_is_full_for_everyone() -> None:
    with pytest.raises(QueueFullError, match="10 jobs wait, as many as max_queue allows"):
        await admit(admission(), ["a"] * 5 + ["b"] * 5, client_id="c")


@pytest.mark.parametrize("wish", [{"front": True}, {"number": -1.0}, {"extra_data": {"priority": 1}}])
async def test_priority_is_a_right_that_the_configuration_can_take_away(wish: dict[str, Any]) -> None:
    assert await admit(admission(), [], **wish) <= 0
    with pytest.raises(InvalidSubmissionError, match="in the order in which they come"):
        await admit(admission(client_priority=False), [], **wish)


@pytest.mark.parametrize("priority", [101, -101, 10**30])
async def test_a_priority_beyond_the_bound_is_refused_with_the_bound(priority: int) -> None:
    await admit(admission(), [], extra_data={"priority": 100})
    with pytest.raises(InvalidSubmissionError, match="max_priority of the configuration allows -100 to 100"):
        await admit(admission(), [], extra_data={"priority": priority})


def two_pools(**settings: Any) -> Admission:
    """Two pools that take the node, of which the first has settings by which pictures differ."""
    optimizations = {"quick": {"fast": True, "step_cache": 0.2}, "exact": {"fast": True}}
    return admission(Pool("quick", True), Pool("exact", True), optimizations=optimizations, **settings)


async def job_of(door: Admission, **extra_data: Any) -> tuple[str, dict[str, Any]]:
    """Return the pool that a job is planned for, and its extra_data."""
    submission = Submission("job", {"1": {"class_type": "Save", "inputs": {}}}, ("1",), extra_data=extra_data)
    row, planned = await door.admit(submission, lambda _: Counter(), lambda: 1)
    check_repeat(row, submission)
    return planned.tasks[0].pool, dict(row.extra_data)


async def test_a_job_names_the_settings_of_its_pools_by_which_pictures_differ() -> None:
    door = two_pools()
    used = {"optimizations": {"quick": {"fast": True, "step_cache": 0.2}}}
    assert await job_of(door, other=1) == ("quick", {"other": 1, **used})
    # One that is sent again with what its answer had.
    assert await job_of(door, pool="exact", **used) == (
        "exact",
        {"pool": "exact", "optimizations": {"exact": {"fast": True}}},
    )
    assert await job_of(admission(), **used) == ("cpu", {})


async def test_a_strict_job_goes_to_a_pool_that_computes_as_usual_or_is_refused() -> None:
    door = two_pools()
    assert (await job_of(door, strict=True))[0] == "exact"
    with pytest.raises(InvalidGraphError, match=r"'strict' in 'extra_data' is true, .*: pool quick has step_cache"):
        await job_of(door, strict=True, pool="quick")
    assert (await job_of(door, strict=False, pool="quick"))[0] == "quick"
