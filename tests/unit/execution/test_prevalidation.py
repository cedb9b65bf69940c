"""VALIDATE_INPUTS and IS_CHANGED, as a worker asks them before a job is accepted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serve_app.errors import Problem
from serve_app.execution.prevalidation import run_hooks
from serve_app.execution.protocol import spec_of
from serve_app.graph.parse import parse


class Picky:
    """Takes numbers; `rule` is its VALIDATE_INPUTS."""

    RETURN_TYPES = ("INT",)
    FUNCTION = "go"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"a": ("INT", {"max": 5}), "b": ("INT,IMAGE",)},
            "hidden": {"me": "UNIQUE_ID", "p": "PROMPT"},
        }

    def go(self, a: int, b: int) -> tuple[int]:
        return (a,)


class OddType(str):
    """A type as packs make them, which tells its own class from a plain string's."""


class Source(Picky):
    RETURN_TYPES = (OddType("INT"),)


def picky(rule: Any = None, changed: Any = None) -> type:
    hooks = {"VALIDATE_INPUTS": rule, "IS_CHANGED": changed}
    return type("Picky", (Picky,), {name: staticmethod(hook) for name, hook in hooks.items() if hook is not None})


async def check(cls: type, **inputs: Any) -> tuple[list[Problem], Any]:
    graph = parse(
        {"n": {"class_type": "Picky", "inputs": inputs}, "s": {"class_type": "Source", "inputs": {"a": 1, "b": 2}}}
    )
    problems, fingerprints = await run_hooks({"Picky": cls, "Source": Source}, graph.nodes, ("n",))
    return problems, fingerprints.get("n")


async def later(answer: Any) -> Any:
    await asyncio.sleep(0)
    return answer


async def test_a_class_that_finds_nothing_wrong_has_no_problems() -> None:
    assert await check(picky(lambda a: True), a=1, b=2) == ([], None)


async def test_what_it_says_is_a_problem_of_each_input_it_was_given() -> None:
    problems, _ = await check(picky(lambda a, b: "too many"), a=9, b=2)
    assert [p.type for p in problems] == ["custom_validation_failed"] * 2
    assert [p.extra["input_name"] for p in problems] == ["a", "b"]
    assert str(problems[0]) == "Picky n: Custom validation failed for node (a - too many)"


async def test_false_is_a_problem_without_a_reason() -> None:
    [problem], _ = await check(picky(lambda a: False), a=9, b=2)
    assert problem.details == "a"


async def test_validate_inputs_may_be_async() -> None:
    [problem], _ = await check(picky(lambda a: later("later")), a=9, b=2)
    assert problem.details == "a - later"


async def test_validate_inputs_gets_only_the_inputs_it_names_and_links_as_none() -> None:
    seen: list[Any] = []
    await check(picky(lambda b: seen.append(b) or True), a=1, b=["s", 0])
    assert seen == [None]


async def test_with_everything_it_is_given_hidden_inputs_too() -> None:
    seen: list[Any] = []
    await check(picky(lambda **given: seen.append(given) or True), a=1, b=2)
    assert seen == [{"a": 1, "b": 2, "me": "n", "p": {}}]


async def test_input_types_are_the_classes_own_type_objects() -> None:
    seen: list[Any] = []
    await check(picky(lambda input_types: seen.append(input_types) or True), a=1, b=["s", 0])
    assert seen == [{"b": "INT"}]
    assert isinstance(seen[0]["b"], OddType)


async def test_an_exception_is_a_problem_and_says_what_it_was() -> None:
    def rule(a: int) -> bool:
        raise LookupError("broken")

    [problem], _ = await check(picky(rule), a=1, b=2)
    assert problem.type == "exception_during_validation"
    assert problem.details == "LookupError: broken"


async def test_a_class_that_is_gone_is_a_problem() -> None:
    graph = parse({"n": {"class_type": "Gone", "inputs": {}}})
    [problem], _ = await run_hooks({}, graph.nodes, ("n",))
    assert (problem.type, problem.node_id) == ("missing_node_type", "n")


@pytest.mark.parametrize("answer", [False, 3, "abc", [1, 2], None])
async def test_a_fingerprint_is_what_is_changed_answers(answer: Any) -> None:
    for hook in (lambda **given: answer, lambda **given: later(answer)):
        assert await check(picky(changed=hook), a=1, b=["s", 0]) == ([], [answer])


async def test_a_fingerprint_of_no_json_value_is_its_text() -> None:
    assert (await check(picky(changed=lambda **given: 1 + 2j), a=1, b=2))[1] == ["(1+2j)"]


async def test_nan_and_an_exception_never_equal_anything() -> None:
    def broken(**given: Any) -> None:
        raise LookupError

    for hook in (lambda **given: float("nan"), broken):
        cls = picky(changed=hook)
        assert (await check(cls, a=1, b=2))[1] != (await check(cls, a=1, b=2))[1]


async def test_is_changed_sees_constants_only() -> None:
    seen: list[Any] = []
    await check(picky(changed=lambda a, b, **more: seen.append((a, b))), a=1, b=["s", 0])
    assert seen == [(1, None)]


def test_a_spec_lists_the_hooks_that_a_worker_has_to_run() -> None:
    named = spec_of(picky(lambda a, input_types: True), "Picky")
    assert named.needs_prevalidation
    assert [named.validates(name) for name in ("a", "b", "input_types")] == [True, False, True]
    assert spec_of(picky(lambda **given: True), "Picky").validates("anything")
    assert not spec_of(Picky, "Picky").needs_prevalidation
    assert spec_of(picky(changed=lambda **given: 1), "Picky").needs_prevalidation
