"""Loops, as one replica evaluates them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from serve_app.execution.node_failure import NodeFailedError
from serve_app.nodes.registry import BUILTIN
from tests.unit.nodes.one_replica import Add, Constant, Node, OneReplica, Range, task


class Told(Node):
    """All that a loop's start tells."""

    RETURN_TYPES = ("*",)
    inputs = ("index", "first", "last", "item", "carried")

    def go(self, **told: Any) -> tuple[Any]:
        return (tuple(told[name] for name in self.inputs),)


class ShowOn(Node):
    """Shows a value and passes it on."""

    OUTPUT_NODE = True
    inputs = ("value",)

    def go(self, value: Any) -> dict[str, Any]:
        return {"ui": {"text": [value]}, "result": (value,)}


CLASSES: Mapping[str, type] = {
    **BUILTIN,
    **{c.__name__: c for c in (Add, Constant, Range, ShowOn, Told)},
}


class Replica(OneReplica):
    classes: ClassVar[Mapping[str, type]] = CLASSES


SIMPLE = {"mode": "simple", "cache_iterations": False}
TOLD = {name: ["start", slot] for slot, name in enumerate(Told.inputs)}


async def run(**nodes: Any) -> Any:
    """Return the values of the node `end`."""
    replica, asked = Replica(), task(CLASSES, "end", **nodes)
    await replica.run(asked)
    return replica.value(asked, "end")


def loop(mode: Mapping[str, Any], body: Mapping[str, Any], accumulate: bool = True, **end: Any) -> dict[str, Any]:
    ends = {"accumulate": accumulate, "output_value": ["body", 0], **end}
    return {"start": ("StartLoop", {**SIMPLE, **mode}), "body": ("Told", dict(body)), "end": ("EndLoop", ends)}


@pytest.mark.parametrize(
    ("mode", "indices"),
    [
        ({"mode.num_iterations": 3}, [0, 1, 2]),
        ({"mode.num_iterations": ["count", 0]}, [0, 1]),
        ({"mode.num_iterations": 0}, []),
        (
            {"mode": "For", "mode.start_iteration_index": 5, "mode.max_iteration": 12, "mode.step": 3},
            [5, 8, 11],
        ),
    ],
)
async def test_a_loop_counts(mode: Mapping[str, Any], indices: list[int]) -> None:
    told = await run(**loop(mode, TOLD), count=("Constant", {"value": 2}))
    last = len(indices) - 1
    assert told == [(index, place == 0, place == last, None, None) for place, index in enumerate(indices)]


async def test_a_loop_goes_through_a_list() -> None:
    listed = {"mode": "List", "mode.list": ["range", 0]}
    told = await run(**loop(listed, TOLD), range=("Range", {"n": 3}))
    assert [item for *_, item, _ in told] == [0, 1, 2]


async def test_the_last_iterations_value_is_kept_alone() -> None:
    told = await run(**loop({"mode.num_iterations": 3}, TOLD, accumulate=False))
    assert told == [(2, False, True, None, None)]


async def test_a_value_is_carried_from_one_iteration_to_the_next() -> None:
    nodes = {
        "seven": ("Constant", {"value": 7}),
        "start": ("StartLoop", {**SIMPLE, "mode.num_iterations": 4, "initial_iteration_value": ["seven", 0]}),
        "sum": ("Add", {"a": ["start", 4], "b": ["start", 0]}),
        "end": ("EndLoop", {"accumulate": True, "output_value": ["sum", 0], "next_iteration_value": ["sum", 0]}),
    }
    assert await run(**nodes) == [7, 8, 10, 13]


async def test_a_loop_within_a_loop_runs_in_each_of_its_iterations() -> None:
    nodes = {
        "start": ("StartLoop", {**SIMPLE, "mode.num_iterations": 2}),
        "inner": ("StartLoop", {**SIMPLE, "mode.num_iterations": 3, "parent_iteration": ["start", 0]}),
        "ten": ("Add", {"a": ["start", 0], "b": 10}),
        "sum": ("Add", {"a": ["ten", 0], "b": ["inner", 0]}),
        "ended": ("EndLoop", {"accumulate": True, "output_value": ["sum", 0]}),
        "end": ("EndLoop", {"accumulate": True, "output_value": ["ended", 0]}),
    }
    assert await run(**nodes) == [10, 11, 12, 11, 12, 13]


async def test_loops_one_after_another_are_each_its_own() -> None:
    nodes = {
        "start": ("StartLoop", {**SIMPLE, "mode.num_iterations": 3}),
        "sum": ("Add", {"a": ["start", 0], "b": 1}),
        "ended": ("EndLoop", {"accumulate": True, "output_value": ["sum", 0]}),
        "again": ("StartLoop", {"mode": "List", "cache_iterations": False, "mode.list": ["ended", 0]}),
        "double": ("Add", {"a": ["again", 3], "b": ["again", 3]}),
        "end": ("EndLoop", {"accumulate": True, "output_value": ["double", 0]}),
    }
    assert await run(**nodes) == [2, 4, 6]


async def test_previews_inside_a_loop_are_sent_each_iteration_under_their_own_node() -> None:
    nodes: dict[str, Any] = {
        "start": ("StartLoop", {**SIMPLE, "mode.num_iterations": 3}),
        "sum": ("Add", {"a": ["start", 0], "b": 5}),
        "show": ("ShowOn", {"value": ["sum", 0]}),
        "end": ("EndLoop", {"accumulate": False, "terminations.termination0": ["show", 0]}),
    }
    replica, asked = Replica(), task(CLASSES, "end", "show", **nodes)
    await replica.run(asked)
    shown = [(replica.origins.get(node_id), ui["text"]) for node_id, ui in replica.finished_nodes if ui]
    assert [text for _, text in shown] == [[5], [6], [7]], "in the order of iterations"
    assert {origin.display for origin, _ in shown if origin is not None} == {"show"}
    assert replica.value(asked, "end") == []
    assert replica.blocked_nodes == []


async def test_a_value_in_order_is_what_it_is() -> None:
    nodes: dict[str, Any] = {"range": ("Range", {"n": 3}), "one": ("Constant", {"value": 1})}
    assert await run(**nodes, end=("LoopInOrder", {"value": ["range", 0], "after": ["one", 0]})) == [0, 1, 2]


async def test_an_end_without_a_start_is_refused() -> None:
    with pytest.raises(NodeFailedError, match="no Start Loop is before it"):
        await run(one=("Constant", {"value": 1}), end=("EndLoop", {"accumulate": False, "output_value": ["one", 0]}))


@pytest.mark.parametrize(
    ("mode", "iterations"),
    [
        ({"mode": "simple", "mode.num_iterations": 10**30}, f"{10**30:,}"),
        ({"mode": "simple", "mode.num_iterations": 50_001}, "50,001"),
        (
            {"mode": "For", "mode.start_iteration_index": 0, "mode.max_iteration": 2**64 - 1, "mode.step": 1},
            f"{2**64 - 1:,}",
        ),
    ],
)
async def test_a_loop_of_too_many_iterations_is_refused_before_memory_is_taken(
    mode: Mapping[str, Any], iterations: str
) -> None:
    with pytest.raises(NodeFailedError) as failed:
        await run(**loop(mode, TOLD))
    assert f"{iterations} iterations of 1 nodes" in str(failed.value.exception)
    assert "a loop may have 100,000" in str(failed.value.exception)


def loops_in_a_row(count: int) -> dict[str, Any]:
    nodes: dict[str, Any] = {"value0": ("Constant", {"value": 0})}
    for i in range(count):
        nodes[f"start{i}"] = (
            "StartLoop",
            {**SIMPLE, "mode.num_iterations": 1, "initial_iteration_value": [f"value{i}", 0]},
        )
        nodes[f"body{i}"] = ("Add", {"a": [f"start{i}", 4], "b": 1})
        name = "end" if i == count - 1 else f"value{i + 1}"
        nodes[name] = ("EndLoop", {"accumulate": False, "output_value": [f"body{i}", 0]})
    return nodes


async def test_many_loops_may_follow_each_other_and_too_many_are_refused() -> None:
    # Each looks for its start among those that the others before it have closed, once.
    assert await run(**loops_in_a_row(30)) == [30]
    with pytest.raises(NodeFailedError) as failed:
        await run(**loops_in_a_row(60))
    assert "loops begin before it; 50 may" in str(failed.value.exception)
