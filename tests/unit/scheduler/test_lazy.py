"""Lazy inputs across pools: what only they lead to is made once a running task asks for it, and not before."""

from __future__ import annotations

import pytest

from serve_app.graph.graph import Graph, Link, Node
from serve_app.graph.plan import Pool, Task, plan
from serve_app.graph.spec import Input, NodeSpec
from serve_app.scheduler.core.events import JobArrived, ReplicaLost
from serve_app.scheduler.core.records import SHARED_LOSSES
from serve_app.scheduler.protocol.messages import Compute, Deliver, Export, Exported, NodeFinished, TaskFinished, Want
from serve_app.store.database.changes import JobRow
from tests.unit.scheduler.script import Script, assigned, events, sent

LAZY = {"lazy": True}
SPECS = {
    "Make": NodeSpec("Make", (Input("from", "*", "optional"),), ("*",), ("*",), (False,)),
    "Mix": NodeSpec("Mix", (Input("a", "*", options=LAZY), Input("b", "*", options=LAZY)), ("*",), ("*",), (False,)),
    "Save": NodeSpec("Save", (Input("images", "*"),), (), (), (), output_node=True),
}
MAKERS, MIXERS = Pool("makers", False, ("Make",)), Pool("mixers", False, ("Mix", "Save"))
NODES = {
    "1": Node("1", "Make", {"seed": 1}),
    "2": Node("2", "Make", {"from": Link("1", 0)}),
    "3": Node("3", "Make", {"seed": 3}),
    "4": Node("4", "Mix", {"a": Link("2", 0), "b": Link("3", 0)}),
    "5": Node("5", "Save", {"images": Link("4", 0)}),
}


def started(*pools: Pool) -> Script:
    """A script with one job and one replica of one slot in every pool."""
    script = Script(pools)
    signatures = {node_id: f"s{node_id}" for node_id in NODES}
    planned = plan(Graph(NODES), SPECS, ["5"], signatures, pools)
    row = JobRow("a", 1, 1, {}, ("5",), None, {}, 99.0, script.machine.next_seq())
    script.apply(JobArrived(row, planned))
    for pool in pools:
        script.replica(f"r-{pool.name}", pool.name)
    return script


def finish(script: Script, replica: str, task: Task, *node_ids: str) -> None:
    for node_id in node_ids:
        script.report(replica, NodeFinished(task.id, node_id, f"s{node_id}", {} if node_id == "5" else None))
    script.report(replica, TaskFinished(task.id))


def test_a_plan_names_as_targets_and_needs_only_what_runs_in_any_case() -> None:
    made = plan(Graph(NODES), SPECS, ["5"], {}, (MAKERS, MIXERS))
    assert {(t.pool, frozenset(t.nodes), t.targets, t.needs) for t in made.tasks} == {
        ("makers", frozenset("12"), (), ()),
        ("makers", frozenset("3"), (), ()),
        ("mixers", frozenset("45"), ("5",), ()),
    }
    assert made.certain == {"4", "5"}


def test_what_only_a_lazy_input_leads_to_waits_until_it_is_asked_for() -> None:
    script = started(MAKERS, MIXERS)
    [(_, mixing)] = assigned(script.commands)
    assert mixing.targets == ("5",)
    [(replica, making)] = assigned(script.report("r-mixers", Want(mixing.id, "s2")))
    assert (replica, set(making.nodes), making.targets) == ("r-makers", {"1", "2"}, ("2",))
    finish(script, "r-makers", making, "1", "2")
    assert sent(script.commands, Export) == [("r-makers", Export("s2"))]
    delivered = script.report("r-makers", Exported("s2", "value"))
    assert sent(delivered, Deliver) == [("r-mixers", Deliver("s2", "value"))]
    finish(script, "r-mixers", mixing, "4", "5")
    assert events(script.commands, "a")[-1] == "success"
    assert len(assigned(script.commands)) == 2, "the other branch never ran"


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_task_that_a_running_one_waits_for_begins_though_jobs_that_wait_for_it_too_hold_every_slot(jobs: int) -> None:
    # Both pools' tasks on the one slot of one replica: the graph goes from pool to pool and back.
    pools = (Pool("makers", False, ("Make", "Save")), Pool("mixers", False, ("Mix",)))
    nodes = {**NODES, "1": Node("1", "Mix", {"b": Link("3", 0)})}
    script = Script(pools)
    planned = plan(Graph(nodes), SPECS, ["5"], {n: f"s{n}" for n in nodes}, pools)
    for order in range(jobs):
        row = JobRow(f"job{order}", order, order, {}, ("5",), None, {}, 99.0, script.machine.next_seq())
        script.apply(JobArrived(row, planned))
    for pool in pools:
        script.replica(f"r-{pool.name}", pool.name)
    [(replica, mixing)] = assigned(script.commands)
    assert (replica, mixing.targets) == ("r-mixers", ("4",))
    [(replica, making)] = assigned(script.report("r-mixers", Want(mixing.id, "s2")))
    assert (replica, making.targets) == ("r-makers", ("2",))
    [(replica, first)] = assigned(script.report("r-makers", Want(making.id, "s1")))
    assert (replica, first.targets) == ("r-mixers", ("1",)), "beside the task that waits for it in the end"


def test_what_a_suspects_running_task_waits_for_begins_though_it_is_another_tenants_turn() -> None:
    # The replica is kept for the suspect: nobody else is let in, and the suspect ends only with what it waits for.
    pools = (Pool("makers", False, ("Make", "Save")), Pool("mixers", False, ("Mix",)))
    nodes = {**NODES, "1": Node("1", "Mix", {"b": Link("3", 0)})}
    script = Script(pools)

    def submit(job_id: str, tenant: str, losses: int = 0) -> None:
        planned = plan(Graph(nodes), SPECS, ["5"], {n: f"{job_id}{n}" for n in nodes}, pools)
        seq = script.machine.next_seq()
        row = JobRow(job_id, 1, seq, {}, ("5",), None, {}, 99.0, seq, tenant=tenant, losses=losses)
        script.apply(JobArrived(row, planned))

    submit("suspect", "z", SHARED_LOSSES)
    for pool in pools:
        script.replica(f"r-{pool.name}", pool.name)
    [(replica, mixing)] = assigned(script.commands)
    assert script.machine.replicas[replica].quarantined == "suspect"
    submit("rival", "a")
    [(_, making)] = assigned(script.report("r-mixers", Want(mixing.id, "suspect2")))
    [(replica, first)] = assigned(script.report("r-makers", Want(making.id, "suspect1")))
    assert (replica, first.id.job_id, first.targets) == ("r-mixers", "suspect", ("1",))


def test_a_lazy_input_requested_while_its_task_runs_is_computed_by_another_task() -> None:
    nodes = {**NODES, "3": Node("3", "Make", {"from": Link("1", 0)})}
    script = Script((MAKERS, MIXERS))
    planned = plan(Graph(nodes), SPECS, ["5"], {n: f"s{n}" for n in nodes}, (MAKERS, MIXERS))
    row = JobRow("a", 1, 1, {}, ("5",), None, {}, 99.0, script.machine.next_seq())
    script.apply(JobArrived(row, planned))
    script.replica("r-makers", "makers")
    script.replica("r-mixers", "mixers")
    [(_, mixing)] = assigned(script.commands)
    [(_, making)] = assigned(script.report("r-mixers", Want(mixing.id, "s2")))
    assert assigned(script.report("r-mixers", Want(mixing.id, "s3"))) == []
    finish(script, "r-makers", making, "1", "2")
    (_, again) = assigned(script.commands)[-1]
    assert again.targets == ("3",)
    assert again.id.attempt == making.id.attempt + 1


def test_a_lazy_value_in_a_replicas_memory_is_fetched_and_not_computed_again() -> None:
    script = started(MAKERS, MIXERS)
    [(_, mixing)] = assigned(script.commands)
    [(_, making)] = assigned(script.report("r-mixers", Want(mixing.id, "s3")))
    finish(script, "r-makers", making, "3")
    script.report("r-makers", Exported("s3", "value"))
    script.apply(ReplicaLost("r-mixers"))
    commands = script.replica("r-new", "mixers")
    [(_, second)] = assigned(commands)
    commands = script.report("r-new", Want(second.id, "s3"))
    assert sent(commands, Export) == [("r-makers", Export("s3"))]
    assert assigned(commands) == []


def test_a_value_that_no_task_makes_is_made_by_who_asks() -> None:
    script = started(MAKERS, MIXERS)
    [(_, mixing)] = assigned(script.commands)
    assert sent(script.report("r-mixers", Want(mixing.id, "made in a subgraph")), Compute) == [
        ("r-mixers", Compute("made in a subgraph"))
    ]
