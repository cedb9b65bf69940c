"""What a replica counts of its nodes."""

from __future__ import annotations

from serve_app.graph.graph import Node
from serve_app.graph.plan import Task, TaskId
from serve_app.replica.node_times import MADE, NodeTimes


def task(job_id: str = "a") -> Task:
    node = Node(id="3", class_type="KSampler", inputs={})
    return Task(
        id=TaskId(job_id, 0, 0),
        nodes={"3": node},
        targets=("3",),
        signatures={},
        remote=frozenset(),
        prompt={},
        extra_data={},
        created_s=0.0,
    )


def test_a_computed_node_leaves_its_class_and_its_duration_once():
    times = NodeTimes()
    times.began(task(), "3")
    times.ended(task(), "3", computed=True)
    [(kind, seconds)] = times.read()
    assert (kind, seconds >= 0) == ("KSampler", True)
    assert list(times.read()) == []


def test_a_result_that_was_there_is_a_hit_and_no_duration():
    times = NodeTimes()
    times.ended(task(), "3", computed=False)
    assert (times.held, list(times.read())) == (1, [])


def test_a_node_that_another_made_is_counted_without_its_class():
    times = NodeTimes()
    times.began(task(), "3.0.0.1")
    times.ended(task(), "3.0.0.1", computed=True)
    assert [kind for kind, _ in times.read()] == [MADE]


def test_a_task_that_stops_leaves_nothing_of_its_nodes_behind_and_others_alone():
    times = NodeTimes()
    times.began(task("a"), "3")
    times.began(task("b"), "3")
    times.over(TaskId("a", 0, 0))
    times.ended(task("a"), "3", computed=True)
    times.ended(task("b"), "3", computed=True)
    assert len(list(times.read())) == 1
