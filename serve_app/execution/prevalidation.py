"""Runs node classes' own hooks before a job is accepted: VALIDATE_INPUTS and IS_CHANGED, on constants only.

Both may be async. They run in workers, never in the ingress or the scheduler (docs/decisions/0009). Source: the facts
of ComfyUI 0.3.64's `execution.py` (validate_inputs, IsChangedCache).
"""

from __future__ import annotations

import asyncio
import json
import traceback
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from serve_app.errors import Problem
from serve_app.execution.call import ExecutionBlocker, map_over_lists
from serve_app.execution.contained import contained, original_error, safe_str
from serve_app.execution.executing import Executing, Underway
from serve_app.execution.protocol import spec_of
from serve_app.execution.time_limit import TimeLimit
from serve_app.graph.dynamic import opened
from serve_app.graph.graph import BadLink, Link, Node
from serve_app.graph.parse import unstorable
from serve_app.graph.spec import HIDDEN_KINDS, OWN_KINDS, NodeSpec

FAILED = "Exception when validating node"
REFUSED = "Custom validation failed for node"

JOBLESS = ""
"""The job id of hooks that run before their job is accepted."""


async def run_hooks(
    classes: Mapping[str, type],
    nodes: Mapping[str, Node],
    node_ids: Sequence[str],
    *,
    limit: TimeLimit | None = None,
    underway: Underway | None = None,
) -> tuple[list[Problem], dict[str, Any]]:
    """Run both hooks of every named node, concurrently; return the problems and the fingerprints.

    limit: of one hook. underway: where the hooks are noted while they run.
    """
    problems: list[Problem] = []
    fingerprints: dict[str, Any] = {}
    noted = Underway() if underway is None else underway

    async def ask(node: Node) -> None:
        node_class = classes.get(node.class_type)
        if node_class is None:
            problems.append(_of(node, Problem("missing_node_type", "no worker has this class any more"), {}))
            return
        call = Executing(JOBLESS, node.id, node.class_type, time_limit=limit, underway=noted)
        try:
            with contained():
                spec = opened(spec_of(node_class, node.class_type), node.inputs)
                problems.extend(
                    await run_validator(node_class, spec, node, _output_types(classes, nodes, spec, node), call)
                )
                if spec.fingerprinted:
                    fingerprints[node.id] = await fingerprint(node_class, spec, node, call)
        except Exception as failure:
            error = original_error(failure)
            extra = {"exception_type": type(error).__name__, "traceback": traceback.format_tb(error.__traceback__)}
            why = f"{type(error).__name__}: {safe_str(error)}"
            problems.append(_of(node, Problem("exception_during_validation", FAILED, why), extra))

    await asyncio.gather(*(ask(nodes[node_id]) for node_id in node_ids))
    order = {node_id: index for index, node_id in enumerate(node_ids)}
    return sorted(problems, key=lambda problem: order[problem.node_id or ""]), fingerprints


def _output_types(classes: Mapping[str, type], nodes: Mapping[str, Node], spec: NodeSpec, node: Node) -> dict[str, Any]:
    """Return the declared types of the values on linked inputs, as the classes have them: packs' own kinds of
    string.
    """
    types: dict[str, Any] = {}
    for name, link in node.links():
        source = nodes.get(link.node_id)
        outputs = getattr(classes.get(source.class_type) if source else None, "RETURN_TYPES", ())
        if spec.input(name) is not None and 0 <= link.slot < len(outputs):
            types[name] = outputs[link.slot]
    return types


async def run_validator(
    node_class: type, spec: NodeSpec, node: Node, output_types: Mapping[str, Any], call: Executing
) -> list[Problem]:
    """Run VALIDATE_INPUTS and return its problems: one for each of its inputs.

    output_types: the declared type of each linked input's value. Errors: the hook's own.
    """
    hook = getattr(node_class, "VALIDATE_INPUTS", None)
    if hook is None or not spec.validator:
        return []
    # The validator takes a dynamic input by its declared name.
    given = {name: v for name, v in _inputs(spec, node).items() if spec.validates(name.split(".")[0])}
    if "input_types" in spec.validator:
        given["input_types"] = [dict(output_types)]
    nested = spec.nesting

    def taken(values: Mapping[str, Any]) -> Mapping[str, Any]:
        whole = values if nested is None else nested.nested(values)
        return {name: value for name, value in whole.items() if name == "input_types" or spec.validates(name)}

    answers = await map_over_lists(hook, given, call, nested=taken)
    return [
        _of(node, Problem("custom_validation_failed", REFUSED, _reason(name, answer)), {"input_name": name})
        for name in given
        for answer in answers
        if answer is not True and not isinstance(answer, ExecutionBlocker)
    ]


async def fingerprint(node_class: type, spec: NodeSpec, node: Node, call: Executing) -> Any:
    """Run IS_CHANGED and return a JSON value to compare; a unique one for NaN or an error."""
    hook = getattr(node_class, "IS_CHANGED", None)
    if hook is None:
        return None
    try:
        nested = None if spec.nesting is None else spec.nesting.nested
        answers = await map_over_lists(hook, _inputs(spec, node), call, nested=nested)
    except Exception:
        return f"unknown-{uuid.uuid4().hex}"
    return [_comparable(answer) for answer in answers]


def constant_inputs(spec: NodeSpec, node: Node) -> Iterator[tuple[str, list[Any]]]:
    """Yield the inputs that need no other node, as lists: declared constants, and raw links as [node id, slot]."""
    for name, value in node.inputs.items():
        declared = spec.input(name)
        if isinstance(value, Link):
            if declared is not None and declared.raw_link:
                yield name, [[value.node_id, value.slot]]
        elif spec.uses(name) and not isinstance(value, BadLink):
            yield name, [value]


def _inputs(spec: NodeSpec, node: Node) -> dict[str, list[Any]]:
    """Return every input as a list; linked ones as [None], since no node has run."""
    known = {name: [None] for name, _ in node.links()} | dict(constant_inputs(spec, node))
    inputs = {name: known[name] for name in node.inputs if name in known}
    given = {"PROMPT": {}, "UNIQUE_ID": node.id}
    asked = HIDDEN_KINDS - OWN_KINDS
    return inputs | {name: [given.get(kind)] for name, kind in spec.hidden.items() if kind in asked}


def _comparable(answer: Any) -> Any:
    if isinstance(answer, ExecutionBlocker):
        return None
    if answer is None or isinstance(answer, bool | int | float | str):
        # NaN equals nothing, not even itself.
        return f"nan-{uuid.uuid4().hex}" if unstorable(answer) else _plain(answer)
    return _plain(answer) if isinstance(answer, list | dict) and not unstorable(answer) else str(answer)


def _plain(answer: Any) -> Any:
    """Return a JSON value without classes of its pack, which other processes lack."""
    return json.loads(json.dumps(answer))


def _reason(name: str, answer: Any) -> str:
    return name if answer is False else f"{name} - {answer}"


def _of(node: Node, problem: Problem, extra: Mapping[str, Any]) -> Problem:
    return Problem(problem.type, problem.message, problem.details, node.id, node.class_type, extra)
