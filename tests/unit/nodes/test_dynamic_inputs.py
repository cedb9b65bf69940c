"""Nodes with dynamic inputs, run: what their functions are given, lazily too, and by their validators."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from serve_app.execution.prevalidation import run_hooks
from serve_app.graph.graph import Node as GraphNode
from tests.unit.nodes.one_replica import Constant, Node, OneReplica, Range, task

NUMBERS = {"template": {"input": {"required": {"n": ("INT", {})}}, "prefix": "n", "min": 1, "max": 5}}
MODES = {
    "options": [
        {"key": "add", "inputs": {"required": {"to": ("INT", {})}}},
        {"key": "pick", "inputs": {"required": {"one": ("INT", {"lazy": True}), "two": ("INT", {"lazy": True})}}},
    ]
}


class Sum(Node):
    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"numbers": ("COMFY_AUTOGROW_V3", NUMBERS)}}

    def go(self, numbers: dict[str, int]) -> tuple[int]:
        return (sum(numbers.values()),)


class Either(Node):
    asked: ClassVar[list[Any]] = []

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"mode": ("COMFY_DYNAMICCOMBO_V3", MODES)}}

    def check_lazy_status(self, mode: dict[str, Any]) -> list[str]:
        self.asked.append(mode)
        value, name = mode["two"]
        return [name] if value is None else []

    def go(self, mode: dict[str, Any]) -> tuple[Any]:
        return (mode,)


class Strict(Sum):
    @classmethod
    def VALIDATE_INPUTS(cls, numbers: dict[str, Any]) -> Any:
        return True if sum(n or 0 for n in numbers.values()) < 9 else "too many"


class Whatever(Node):
    ACCEPT_ALL_INPUTS = True
    RETURN_TYPES = ("*",)

    def go(self, **given: Any) -> tuple[Any]:
        return (given,)


class Replica(OneReplica):
    classes: ClassVar = {c.__name__: c for c in (Constant, Range, Sum, Either, Strict, Whatever)}


async def made(**nodes: Any) -> Any:
    replica, one = Replica(), task(Replica.classes, "out", **nodes)
    await replica.run(one)
    return replica.value(one, "out"), set(replica.started_nodes)


async def test_grown_inputs_come_in_one_dict() -> None:
    nodes = {"a": ("Constant", {"value": 4}), "out": ("Sum", {"numbers.n0": ["a", 0], "numbers.n3": 2})}
    assert (await made(**nodes))[0] == [6]


async def test_a_list_in_one_of_them_makes_a_call_for_each_element() -> None:
    nodes = {"a": ("Range", {"n": 3}), "out": ("Sum", {"numbers.n0": ["a", 0], "numbers.n1": 10})}
    assert (await made(**nodes))[0] == [10, 11, 12]


async def test_only_the_lazy_input_requested_by_its_dotted_name_is_evaluated() -> None:
    Either.asked.clear()
    values, started = await made(
        a=("Constant", {"value": 1}),
        b=("Constant", {"value": 2}),
        out=("Either", {"mode": "pick", "mode.one": ["a", 0], "mode.two": ["b", 0]}),
    )
    assert values == [{"mode": "pick", "one": None, "two": 2}]
    assert started == {"b", "out"}
    first = {"mode": ("pick", "mode"), "one": (None, "mode.one"), "two": (None, "mode.two")}
    assert Either.asked == [first, {**first, "two": (2, "mode.two")}]


async def test_a_validator_is_given_the_dict_too() -> None:
    async def found(**given: int) -> list[Any]:
        nodes = {"1": GraphNode("1", "Strict", {f"numbers.{name}": value for name, value in given.items()})}
        problems, _ = await asyncio.wait_for(run_hooks(Replica.classes, nodes, ["1"]), 60)
        return [(p.type, p.details, p.extra) for p in problems]

    assert await found(n0=4) == []
    name = "numbers.n0"
    assert await found(n0=9) == [("custom_validation_failed", f"{name} - too many", {"input_name": name})]


async def test_a_class_may_ask_for_constants_that_it_does_not_declare() -> None:
    assert (await made(out=("Whatever", {"a": 1, "b": "x"})))[0] == [{"a": 1, "b": "x"}]
