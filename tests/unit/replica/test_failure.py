"""What is told of a node that raised."""

from __future__ import annotations

from serve_app.graph.plan import Task, TaskId
from serve_app.replica.failure import CHARACTERS, LINES, failed


def test_of_an_exception_that_holds_a_giant_value_only_a_part_is_told() -> None:
    task = Task(TaskId("job", 0, 0), {}, (), {}, frozenset(), {}, {})
    report = failed(task, "1", "Show", ValueError("a" * 10_000_000))
    assert len(report.message) == CHARACTERS
    assert sum(map(len, report.traceback)) <= LINES * CHARACTERS
    assert max(map(len, report.traceback)) <= CHARACTERS
