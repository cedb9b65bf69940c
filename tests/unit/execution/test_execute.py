from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from typing import Any, ClassVar

import pytest

from serve_app.errors import CancelledJobError, NodeError
from serve_app.execution.execute import Execution
from serve_app.execution.node_failure import LostValueError, NodeFailedError
from serve_app.graph.plan import Task
from tests.unit.nodes.one_replica import Add, Constant, Node, OneReplica, Range, Show, task


class Meet(Node):
    inputs = ("parties", "value")
    barrier: asyncio.Barrier

    async def go(self, parties: int, value: int = 0) -> tuple[int]:
        await Meet.barrier.wait()
        return (value,)


class Hang(Node):
    inputs = ("value",)
    stopped: ClassVar[list[int]] = []

    async def go(self, value: int) -> tuple[int]:
        try:
            await asyncio.Event().wait()
        finally:
            Hang.stopped.append(value)
        return (value,)


class Fail(Node):
    inputs = ("value",)

    async def go(self, value: int) -> tuple[int]:
        await asyncio.sleep(0)
        raise {0: LookupError("broken"), 1: CancelledJobError("cancelled"), 2: asyncio.CancelledError()}[value]


class Hidden(Node):
    RETURN_TYPES = ("INT",) * 4
    hidden: ClassVar = {"who": "UNIQUE_ID", "prompt": "PROMPT", "extra": "EXTRA_PNGINFO", "store": "STORE"}

    def go(self, who: Any, prompt: Any, extra: Any, store: Any) -> tuple[Any, ...]:
        return (who, prompt, extra, store)


class NeedsModels(Node):
    hidden: ClassVar = {"runtime": "RUNTIME"}

    async def go(self, runtime: Any) -> tuple[Any]:
        return (runtime,)


CLASSES: dict[str, type] = {
    cls.__name__: cls for cls in (Constant, Add, Range, Show, Meet, Hang, Fail, Hidden, NeedsModels)
}


class Replica(OneReplica):
    classes = CLASSES


def task_of(*targets: str, **nodes: Any) -> Task:
    return task(CLASSES, *targets, **nodes)


def constant(value: int) -> tuple[str, dict[str, Any]]:
    return ("Constant", {"value": value})


def add(a: str, b: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return ("Add", {"a": [a, 0], "b": [b, 0], **more})


def show(source: str) -> tuple[str, dict[str, Any]]:
    return ("Show", {"value": [source, 0]})


async def test_targets_and_what_they_need_are_computed_each_once() -> None:
    replica = Replica()
    task = task_of("s", a=constant(1), b=add("a", "a"), c=add("b", "a"), s=show("c"), unneeded=constant(9))
    await replica.run(task)
    assert sorted(replica.started_nodes) == ["a", "b", "c", "s"]
    assert dict(replica.finished_nodes) == {"a": None, "b": None, "c": None, "s": {"text": [3]}}
    assert len(replica.finished_nodes) == 4


async def test_lists_flow_along_links() -> None:
    replica = Replica()
    await replica.run(task_of("s", r=("Range", {"n": 3}), one=constant(10), sum=add("r", "one"), s=show("sum")))
    assert dict(replica.finished_nodes)["s"] == {"text": [10, 11, 12]}


async def test_undeclared_links_are_passed_on_and_undeclared_constants_are_not() -> None:
    replica = Replica()
    task = task_of("b", a=constant(1), b=add("a", "a", more=["a", 0], other=50))
    await replica.run(task)
    assert replica.value(task, "b") == [3]


async def test_a_second_run_starts_nothing_and_still_finishes_its_targets() -> None:
    replica = Replica()
    task = task_of("s", a=constant(1), b=add("a", "a"), s=show("b"))
    await replica.run(task)
    replica.started_nodes, replica.finished_nodes = [], []
    await replica.run(task)
    assert replica.started_nodes == []
    assert replica.finished_nodes == [("s", {"text": [2]})]


async def test_equal_nodes_of_one_task_run_once() -> None:
    replica = Replica()
    await replica.run(task_of("s", "t", a=constant(1), s=show("a"), t=show("a")))
    assert len(replica.started_nodes) == 2
    assert sorted(replica.finished_nodes[1:]) == [("s", {"text": [1]}), ("t", {"text": [1]})]


async def test_a_remote_value_is_fetched_and_its_ancestors_are_not_computed() -> None:
    task = task_of("s", remote="b", a=constant(1), b=add("a", "a"), s=show("b"))
    replica = Replica(**{task.signatures["b"]: 7})
    await replica.run(task)
    assert replica.started_nodes == ["s"]
    assert replica.finished_nodes == [("s", {"text": [7]})]
    assert replica.value(task, "b") == [7]


async def test_a_remote_value_that_is_gone_is_computed_here() -> None:
    replica = Replica()
    await replica.run(task_of("s", remote="b", a=constant(1), b=add("a", "a"), s=show("b")))
    assert replica.started_nodes == ["a", "b", "s"]
    assert dict(replica.finished_nodes)["s"] == {"text": [2]}


async def test_a_value_of_another_task_comes_by_fetch_even_if_not_named_remote() -> None:
    task = task_of("s", without="ab", a=constant(1), b=add("a", "a"), s=show("b"))
    replica = Replica(**{task.signatures["b"]: 7})
    await replica.run(task)
    assert replica.finished_nodes == [("s", {"text": [7]})]


async def test_a_lost_value_of_another_task_says_so_and_fails_no_node() -> None:
    with pytest.raises(LostValueError, match="value of node b is gone"):
        await Replica().run(task_of("s", without="ab", a=constant(1), b=add("a", "a"), s=show("b")))


async def test_two_tasks_that_need_one_remote_value_fetch_it_once() -> None:
    task = task_of("s", remote="b", a=constant(1), b=add("a", "a"), s=show("b"))
    replica = Replica(**{task.signatures["b"]: 7})
    await asyncio.gather(replica.run(task), replica.run(task))
    assert replica.fetched == [task.signatures["b"]]


async def test_nodes_that_do_not_need_each_other_run_at_the_same_time() -> None:
    Meet.barrier = asyncio.Barrier(3)
    meet = {name: ("Meet", {"parties": 3, "value": i}) for i, name in enumerate("abc")}
    replica = Replica()
    await replica.run(task_of("s", **meet, d=add("a", "b", more=["c", 0]), s=show("d")))
    assert dict(replica.finished_nodes)["s"] == {"text": [3]}


async def test_two_jobs_that_need_the_same_value_compute_it_once() -> None:
    Meet.barrier = asyncio.Barrier(2)
    replica = Replica()
    first, second = (
        task_of("s", a=("Meet", {"parties": 2, "value": 5}), m=("Meet", {"parties": 2, "value": n}), s=add("a", "m"))
        for n in (1, 1)
    )
    await asyncio.gather(replica.run(first), replica.run(second))
    assert sorted(replica.started_nodes) == ["a", "m", "s"]


async def test_a_job_whose_shared_computation_is_cancelled_with_another_job_makes_it_itself() -> None:
    Meet.barrier = asyncio.Barrier(2)
    replica, other = Replica(), Replica()
    other.held = replica.held
    task = task_of("s", a=("Meet", {"parties": 2, "value": 5}), s=show("a"))
    first = asyncio.create_task(replica.run(task))
    while not replica.started_nodes:
        await asyncio.sleep(0)
    second = asyncio.create_task(other.run(task))
    await asyncio.sleep(0.01)
    assert other.started_nodes == []
    first.cancel()
    while not other.started_nodes:
        await asyncio.sleep(0)
    await Meet.barrier.wait()
    await second
    assert dict(other.finished_nodes)["s"] == {"text": [5]}
    assert replica.finished_nodes == []


async def test_the_first_failing_node_is_named_after_its_siblings_have_stopped() -> None:
    Hang.stopped = []
    task = task_of("s", a=("Fail", {"value": 0}), h=("Hang", {"value": 4}), b=add("a", "h"), s=show("b"))
    with pytest.raises(NodeFailedError, match="Fail a: broken") as caught:
        await Replica().run(task)
    assert (caught.value.node_id, caught.value.class_type) == ("a", "Fail")
    assert isinstance(caught.value.exception, LookupError)
    assert Hang.stopped == [4]


async def test_a_cancelled_job_is_not_a_failed_node() -> None:
    with pytest.raises(CancelledJobError):
        await Replica().run(task_of("s", a=("Fail", {"value": 1}), s=show("a")))


async def test_a_node_that_cancels_itself_has_failed() -> None:
    with pytest.raises(NodeFailedError, match="Fail a: CancelledError"):
        await Replica().run(task_of("s", a=("Fail", {"value": 2}), s=show("a")))


async def test_cancelling_a_run_cancels_every_node_it_started() -> None:
    Hang.stopped = []
    replica = Replica()
    task = task_of("s", a=("Hang", {"value": 1}), b=("Hang", {"value": 2}), c=add("a", "b"), s=show("c"))
    running = asyncio.create_task(replica.execution(task).run())
    while len(replica.started_nodes) < 2:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sorted(Hang.stopped) == [1, 2]
    assert replica.finished_nodes == []


async def test_hidden_inputs_come_from_the_task_and_the_replica() -> None:
    replica, task = Replica(), task_of("h", h=("Hidden", {}))
    await replica.run(task)
    assert replica.value(task, "h") == ["h", task.prompt, {"workflow": 1}, "files of h"]


@pytest.mark.parametrize(
    ("nodes", "text"),
    [
        ({"x": ("NeedsModels", {})}, "NeedsModels x: it needs models, and this replica holds none"),
        (
            {"x": ("Add", {"a": ["s", 0], "b": 1}), "s": show("c"), "c": constant(1)},
            "Add x: a links to slot 0 of node s",
        ),
        ({"x": ("Add", {"b": 1})}, "Add x: .* missing 1 required positional argument: 'a'"),
    ],
)
async def test_what_a_node_cannot_be_given_fails_it_by_name(nodes: dict[str, Any], text: str) -> None:
    with pytest.raises(NodeFailedError, match=text):
        await Replica().run(task_of("x", **nodes))


async def test_a_class_this_replica_lacks_fails_its_node() -> None:
    task = task_of("a", a=constant(1))
    replica = Replica()
    with pytest.raises(NodeFailedError, match="no node class 'Constant'") as caught:
        await Execution(task, {}, replica.held, replica, replica, replica.fetch).run()
    assert isinstance(caught.value.exception, NodeError)


class Counted(defaultdict):
    """A dictionary that counts its look-ups."""

    asked = 0

    def __getitem__(self, key: Any) -> Any:
        self.asked += 1
        return super().__getitem__(key)


async def test_what_a_submitted_graph_costs_to_wait_for_grows_with_its_links():
    async def lookups(length: int) -> int:
        """Run a chain whose end is wanted by as many nodes."""
        nodes: dict[str, Any] = {"n0": ("Constant", {"value": 1})}
        nodes |= {f"n{i}": ("Add", {"a": [f"n{i - 1}", 0], "b": 1}) for i in range(1, length)}
        wanted = {f"w{i}": ("Add", {"a": [f"n{length - 1}", 0], "b": i}) for i in range(length)}
        execution = Replica().execution(task_of(*wanted, **nodes, **wanted))
        execution.awaited = awaited = Counted(Counter)
        await execution.run()
        return awaited.asked

    assert await lookups(40) < 2.1 * await lookups(20)
