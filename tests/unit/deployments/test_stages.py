"""What a replica counts of its nodes."""

from __future__ import annotations

from serve_app.deployments.stages import MADE, Stages
from serve_app.graph.graph import Node
from serve_app.graph.plan import Task, TaskId


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
    stages = Stages()
    stages.began(task(), "3")
    stages.ended(task(), "3", computed=True)
    [(kind, seconds)] = stages.read()
    assert (kind, seconds >= 0) == ("KSampler", True)
    assert list(stages.read()) == []


def test_a_result_that_was_there_is_a_hit_and_no_duration():
    stages = Stages()
    stages.ended(task(), "3", computed=False)
    assert (stages.held, list(stages.read())) == (1, [])


def test_a_node_that_another_made_is_counted_without_its_class():
    stages = Stages()
    stages.began(task(), "3.0.0.1")
    stages.ended(task(), "3.0.0.1", computed=True)
    assert [kind for kind, _ in stages.read()] == [MADE]


def test_a_task_that_stops_leaves_nothing_of_its_nodes_behind_and_others_alone():
    stages = Stages()
    stages.began(task("a"), "3")
    stages.began(task("b"), "3")
    stages.over(TaskId("a", 0, 0))
    stages.ended(task("a"), "3", computed=True)
    stages.ended(task("b"), "3", computed=True)
    assert len(list(stages.read())) == 1
