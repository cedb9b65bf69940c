"""Lazy inputs, subgraphs and blockers, as one replica evaluates them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

from serve_app.execution.call import ExecutionBlocker
from serve_app.execution.expansion import DependencyCycleError, DuplicateNodeError, DynamicPrompt
from serve_app.execution.node_failure import NodeFailedError
from serve_app.execution.protocol import FolderChoice
from serve_app.graph.graph import Origin
from serve_app.graph.plan import Task
from serve_app.packs.graph_utils import GraphBuilder, add_graph_prefix, is_link
from tests.unit.nodes.one_replica import Add, Constant, Node, OneReplica, Range, Show, task


class Choose(Node):
    """Needs the first input where `which` is below 1, the second where it is above 0."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"which": ("FLOAT",), "first": ("*", {"lazy": True}), "second": ("*", {"lazy": True})}}

    def check_lazy_status(self, which: float, first: Any, second: Any) -> list[str]:
        return [
            name
            for name, value, n in (("first", first, which < 1), ("second", second, which > 0))
            if n and value is None
        ]

    def go(self, which: float, first: Any, second: Any) -> tuple[Any]:
        return ((which, first, second),)


class ChooseLater(Choose):
    async def check_lazy_status(self, which: float, first: Any, second: Any) -> list[str]:  # type: ignore[override]
        await asyncio.sleep(0)
        return super().check_lazy_status(which, first, second)


class NeverAsks(Choose):
    check_lazy_status = None  # type: ignore[assignment]


class AsksForMore(Choose):
    def check_lazy_status(self, **inputs: Any) -> list[str]:  # type: ignore[override]
        return ["third"]


class Countdown(Node):
    """A loop: adds n, n − 1, …, 1 to a start, each turn a subgraph of the one before."""

    inputs = ("n", "start")

    def go(self, n: int, start: int) -> Any:
        if n == 0:
            return (start,)
        graph = GraphBuilder()
        total = graph.node("Add", a=n, b=start)
        rest = graph.node("Countdown", n=n - 1, start=total.out(0))
        return {"result": (rest.out(0),), "expand": graph.finalize()}


class Expand(Node):
    """Whatever subgraph the test gives it."""

    RETURN_TYPES = ("*", "*")
    inputs = ("value",)
    make: ClassVar[Any] = None
    hidden: ClassVar[Mapping[str, str]] = {"prompt": "DYNPROMPT", "me": "UNIQUE_ID"}

    def go(self, value: Any = None, **hidden: Any) -> Any:
        return type(self).make(value, **hidden)


class Circle(Choose):
    """Its subgraph's nodes need each other once both of their lazy inputs are asked for."""

    inputs = ("first", "second", "which")

    def go(self, which: float, first: Any, second: Any) -> Any:
        graph = GraphBuilder()
        one = graph.node("Choose", which=0.5, first=1)
        two = graph.node("Choose", which=0.5, first=one.out(0), second=1)
        one.set_input("second", two.out(0))
        return {"result": (two.out(0),), "expand": graph.finalize()}


class Block(Node):
    inputs = ("value", "when", "message")

    def go(self, value: Any, when: Any, message: str | None = None) -> tuple[Any]:
        return (ExecutionBlocker(message) if value == when else value,)


class File(Node):
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"name": (FolderChoice("input", []),)}}

    def go(self, name: str) -> tuple[str]:
        return (name,)


CLASSES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        Constant,
        Add,
        Range,
        Show,
        Choose,
        ChooseLater,
        NeverAsks,
        AsksForMore,
        Countdown,
        Expand,
        Circle,
        Block,
    )
}


class Replica(OneReplica):
    classes = CLASSES


def task_of(*targets: str, **nodes: Any) -> Task:
    return task(CLASSES, *targets, **nodes)


def choice(which: float, kind: str = "Choose") -> dict[str, Any]:
    return {
        "a": ("Constant", {"value": 1}),
        "b": ("Constant", {"value": 2}),
        "c": (kind, {"which": which, "first": ["a", 0], "second": ["b", 0]}),
    }


def expanding(function: Any) -> Task:
    """A task with one node that returns what the function makes, and an output that shows it."""
    Expand.make = staticmethod(function)
    return task_of(
        "s", a=("Constant", {"value": 7}), e=("Expand", {"value": ["a", 0]}), s=("Show", {"value": ["e", 0]})
    )


async def shown(replica: Replica, tasked: Task) -> Any:
    await replica.run(tasked)
    return dict(replica.finished_nodes)["s"]["text"]


# Lazy inputs


@pytest.mark.parametrize("kind", ["Choose", "ChooseLater"])
@pytest.mark.parametrize(("which", "ran", "made"), [(0, "ac", (0, 1, None)), (1, "bc", (1, None, 2))])
async def test_a_lazy_input_is_evaluated_only_if_its_node_asks(kind: str, which: int, ran: str, made: Any) -> None:
    replica, tasked = Replica(), task_of("c", **choice(which, kind))
    await replica.run(tasked)
    assert sorted(replica.started_nodes) == list(ran)
    assert replica.value(tasked, "c") == [made]


async def test_a_node_is_said_to_start_once_however_often_it_asks() -> None:
    replica = Replica()
    await replica.run(task_of("c", **choice(0.5)))
    assert sorted(replica.started_nodes) == ["a", "b", "c"]


async def test_lazy_inputs_are_asked_for_by_every_element_of_a_list() -> None:
    nodes = choice(0) | {"r": ("Range", {"n": 2})}
    nodes["c"][1]["which"] = ["r", 0]
    replica, tasked = Replica(), task_of("c", **nodes)
    await replica.run(tasked)
    assert replica.value(tasked, "c") == [(0, 1, 2), (1, 1, 2)]


async def test_lazy_inputs_of_a_class_that_never_asks_stay_none() -> None:
    replica, tasked = Replica(), task_of("c", **choice(0.5, "NeverAsks"))
    await replica.run(tasked)
    assert replica.value(tasked, "c") == [(0.5, None, None)]


async def test_asking_for_an_input_that_is_not_there_fails_the_node() -> None:
    with pytest.raises(NodeFailedError, match="asks for 'third', which is no input"):
        await Replica().run(task_of("c", **choice(0.5, "AsksForMore")))


# Subgraphs


async def test_a_subgraph_takes_its_nodes_place_and_says_where_it_belongs() -> None:
    def make(value: int, **hidden: Any) -> Any:
        graph = GraphBuilder()
        return {"result": (graph.node("Add", a=value, b=["a", 0]).out(0), 5), "expand": graph.finalize()}

    replica = Replica()
    assert await shown(replica, expanding(make)) == [14]
    assert sorted(replica.started_nodes) == ["a", "e", "e.0.0.1", "s"]
    assert replica.origins["e.0.0.1"] == Origin("e", "e", "e")
    assert replica.origins["e"] is None


async def test_loops_by_subgraphs_of_subgraphs() -> None:
    replica, tasked = Replica(), task_of("c", c=("Countdown", {"n": 5, "start": 100}))
    await replica.run(tasked)
    assert replica.value(tasked, "c") == [115]
    assert replica.origins["c.0.0.2.0.0.1"] == Origin("c", "c.0.0.2", "c")


async def test_equal_nodes_of_subgraphs_are_found_again_by_other_jobs() -> None:
    replica = Replica()
    await replica.run(task_of("c", c=("Countdown", {"n": 3, "start": 100})))
    replica.started_nodes = []
    await replica.run(task_of("x", x=("Countdown", {"n": 3, "start": 100})))
    assert replica.started_nodes == []
    await replica.run(task_of("y", y=("Add", {"a": 3, "b": 100})))
    assert replica.started_nodes == [], "the loop's first turn has added these"


async def test_a_strict_job_finds_equal_nodes_of_strict_jobs_subgraphs_only() -> None:
    replica = Replica()

    async def started(node_id: str, salt: str) -> int:
        tasked = task_of(node_id, **{node_id: ("Countdown", {"n": 3, "start": 100})})
        signed = {node_id: tasked.signatures[node_id] + salt}
        replica.started_nodes = []
        await replica.run(replace(tasked, extra_data={"strict": bool(salt)}, signatures=signed))
        return len(replica.started_nodes)

    usual = await started("c", "")
    assert await started("x", "strict") == usual > 1
    assert await started("y", "strict") == 0


async def test_a_store_that_is_slow_to_find_a_subgraphs_file_delays_nothing_else() -> None:
    loop, others_run = asyncio.get_running_loop(), threading.Event()

    class Slow(Replica):
        classes = CLASSES | {"File": File}

        def fingerprint(self, folder: str, name: str) -> str:
            loop.call_soon_threadsafe(others_run.set)
            assert others_run.wait(60), "the event loop waits for the file"
            return name

    def make(value: int, **hidden: Any) -> Any:
        graph = GraphBuilder()
        return {"result": (graph.node("File", name="a.png").out(0), 0), "expand": graph.finalize()}

    assert await shown(Slow(), expanding(make)) == ["a.png"]


async def test_constants_that_cannot_be_compared_make_a_node_unique() -> None:
    def make(value: int, **hidden: Any) -> Any:
        graph = GraphBuilder()
        tensor = graph.node("Constant", value=torch.ones(2) * value)
        return {"result": (tensor.out(0),), "expand": graph.finalize()}

    replica, task = Replica(), replace(expanding(make), targets=("e",))
    await replica.run(task)
    [made] = replica.value(task, "e")
    assert made.tolist() == [7, 7]


async def test_each_element_of_a_list_may_return_values_or_a_subgraph() -> None:
    def make(value: int, **hidden: Any) -> Any:
        if value == 0:
            return (10, 0)
        if value == 1:
            return {"result": (11, 0)}
        graph = GraphBuilder()
        return {"result": (graph.node("Add", a=value, b=10).out(0), 0), "expand": graph.finalize()}

    Expand.make = staticmethod(make)
    nodes = {"r": ("Range", {"n": 4}), "e": ("Expand", {"value": ["r", 0]}), "s": ("Show", {"value": ["e", 0]})}
    replica = Replica()
    assert await shown(replica, task_of("s", **nodes)) == [10, 11, 12, 13]
    assert {"e.2.0.1", "e.3.0.1"} <= set(replica.started_nodes)


async def test_what_a_subgraph_shows_is_shown_though_nothing_links_to_it() -> None:
    def make(value: int, **hidden: Any) -> Any:
        graph = GraphBuilder()
        graph.node("Show", value=value).set_override_display_id("a")
        return {"result": (1, 2), "expand": graph.finalize()}

    replica = Replica()
    await replica.run(expanding(make))
    assert dict(replica.finished_nodes)["e.0.0.1"] == {"text": [7]}
    assert replica.origins["e.0.0.1"] == Origin("a", "e", "e")


async def test_a_node_sees_the_growing_prompt() -> None:
    seen: list[DynamicPrompt] = []

    def make(value: int, prompt: DynamicPrompt, me: str) -> Any:
        seen.append(prompt)
        return (prompt.get_node(me)["class_type"], prompt.get_node("s")["inputs"])

    assert await shown(Replica(), expanding(make)) == ["Expand"]
    assert seen[0].all_node_ids() == {"a", "e", "s"}


async def test_a_circle_in_a_subgraph_fails_the_node_that_made_it() -> None:
    nodes = choice(0.5, "Circle")
    with pytest.raises(NodeFailedError, match="Circle c: Dependency cycle") as caught:
        await Replica().run(task_of("c", **nodes))
    assert isinstance(caught.value.exception, DependencyCycleError)
    assert caught.value.node_id == "c"


async def test_a_failure_in_a_subgraph_names_the_submitted_node_and_its_inputs() -> None:
    def make(value: int, **hidden: Any) -> Any:
        graph = GraphBuilder()
        return {"result": (graph.node("Add", a=value, b="x").out(0),), "expand": graph.finalize()}

    with pytest.raises(NodeFailedError, match="Expand e: unsupported operand") as caught:
        await Replica().run(expanding(make))
    assert caught.value.inputs == {"a": [7], "b": ["x"]}


@pytest.mark.parametrize(
    ("subgraph", "text"),
    [
        ({"a": {"class_type": "Add", "inputs": {}}}, "an id that is taken"),
        ({"n": {"class_type": "Gone", "inputs": {}}}, "no node class 'Gone'"),
        ({"n": {"inputs": {}}}, "no class_type"),
        (
            {"n": {"class_type": "Constant", "inputs": {"value": ["nowhere", 0]}}},
            "'nowhere', which is not in the prompt",
        ),
    ],
)
async def test_a_wrong_subgraph_fails_its_node(subgraph: dict[str, Any], text: str) -> None:
    with pytest.raises(NodeFailedError, match=text) as caught:
        await Replica().run(expanding(lambda value, **hidden: {"result": (["n", 0], 1), "expand": subgraph}))
    assert isinstance(caught.value.exception, DuplicateNodeError) == ("taken" in text)


# Blockers


async def test_a_silent_blocker_stops_what_follows_and_nothing_else() -> None:
    replica = Replica()
    nodes = {
        "a": ("Constant", {"value": 1}),
        "x": ("Block", {"value": ["a", 0], "when": 1}),
        "s": ("Show", {"value": ["x", 0]}),
        "t": ("Show", {"value": ["a", 0]}),
    }
    await replica.run(task_of("s", "t", **nodes))
    assert dict(replica.finished_nodes)["s"] is None
    assert dict(replica.finished_nodes)["t"] == {"text": [1]}
    assert replica.blocked_nodes == []


async def test_the_reason_of_a_blocker_is_reported_once_by_the_first_node_it_stops() -> None:
    replica = Replica()
    nodes = {
        "x": ("Block", {"value": 1, "when": 1, "message": "no face"}),
        "y": ("Add", {"a": ["x", 0], "b": 1}),
        "s": ("Show", {"value": ["y", 0]}),
    }
    await replica.run(task_of("s", **nodes))
    assert replica.blocked_nodes == [("y", "Add", "no face")]


async def test_in_a_list_only_the_blocked_element_is_left_out() -> None:
    nodes = {
        "r": ("Range", {"n": 3}),
        "x": ("Block", {"value": ["r", 0], "when": 1}),
        "s": ("Show", {"value": ["x", 0]}),
    }
    assert await shown(Replica(), task_of("s", **nodes)) == [0, 2]


# Building


def test_a_builder_makes_links_and_takes_nodes_and_inputs_away() -> None:
    graph = GraphBuilder(prefix="p.")
    one, two = graph.node("Constant", value=1), graph.node("Add", id="sum", a=1, b=2)
    two.set_input("a", one.out(0))
    two.set_input("b", None)
    assert graph.node("Add", id="sum") is two
    assert graph.finalize()["p.sum"] == {"class_type": "Add", "inputs": {"a": ["p.1", 0]}}
    graph.replace_node_output("1", 0, 5)
    graph.remove_node("1")
    assert graph.finalize() == {"p.sum": {"class_type": "Add", "inputs": {"a": 5}}}
    assert graph.lookup_node("sum") is two
    assert graph.lookup_node("1") is None


def test_a_prefix_is_put_before_ids_and_links() -> None:
    wire = {"1": {"class_type": "Add", "inputs": {"a": ["2", 0], "b": 3}}, "2": {"class_type": "Constant"}}
    graph, outputs = add_graph_prefix(wire, [["1", 0], 9], "q.")
    assert graph["q.1"]["inputs"] == {"a": ["q.2", 0], "b": 3}
    assert outputs == (["q.1", 0], 9)


@pytest.mark.parametrize("value", [["a", 0], ["a", 1.0]])
def test_a_link_is_an_id_and_a_slot(value: Any) -> None:
    assert is_link(value)


@pytest.mark.parametrize("value", [["a"], ["a", "b"], [1, 0], ("a", 0), "a", ["a", True]])
def test_anything_else_is_a_constant(value: Any) -> None:
    assert not is_link(value)
