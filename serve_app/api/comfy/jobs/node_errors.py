"""Validation errors of a graph in ComfyUI's words: `error` and `node_errors` of the answer to POST /prompt.

Clients match on the types and show the texts, so both are ComfyUI's own. Source: comfyui 0.33.0 `execution.py`,
validate_prompt and validate_inputs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from serve_app.api.comfy.object_info import config
from serve_app.errors import InvalidGraphError, Problem, short_repr
from serve_app.graph.ancestry import ancestry
from serve_app.graph.dynamic import opened
from serve_app.graph.parse import WRAPPED
from serve_app.graph.spec import NodeSpec
from serve_app.graph.validate import CONVERSIONS

LISTED = 20
"""A longer list of choices, or a larger cycle of nodes, is not repeated in errors."""

REPEATED = 5_000
"""A longer value, in characters, is not repeated either."""

_MESSAGES = {
    "required_input_missing": "Required input is missing",
    "bad_linked_input": "Bad linked input, must be a length-2 list of [node_id, slot_index]",
    "return_type_mismatch": "Return type mismatch between linked nodes",
    "value_not_in_list": "Value not in list",
    "custom_validation_failed": "Custom validation failed for node",
    "dependency_cycle": "Dependency cycle detected",
    "exception_during_validation": "Exception when validating node",
    "exception_during_inner_validation": "Exception when validating inner node",
}


class NodeErrors:
    """The problems of one prompt. choices: folder -> file names, for the inputs that choose a file."""

    def __init__(
        self,
        prompt: Mapping[str, Any],
        problems: Sequence[Problem],
        specs: Mapping[str, NodeSpec],
        choices: Mapping[str, Sequence[str]],
        targets: Sequence[str] | None = None,
    ) -> None:
        self._prompt, self._problems = prompt, problems
        self._specs, self._choices = specs, choices
        self._outputs = ancestry(prompt, specs, targets)

    def by_node(self) -> dict[str, Any]:
        """Return `node_errors`: each wrong node that an output needs, with its errors and those outputs."""
        found: dict[str, Any] = {}
        for problem in self._filed():
            dependent = [output for output, needed in self._outputs.items() if problem.node_id in needed]
            if problem.node_id is None or not dependent:
                continue
            entry = found.setdefault(
                problem.node_id, {"errors": [], "dependent_outputs": dependent, "class_type": problem.class_type}
            )
            entry["errors"].append(problem)
        for entry in found.values():
            # An exception ends a node's validation, so its other errors are unknown.
            exceptions = [problem for problem in entry["errors"] if self._is_exception(problem)]
            entry["errors"] = [self._error(problem) for problem in exceptions[:1] or entry["errors"]]
        return found

    def _filed(self) -> Iterator[Problem]:
        """Yield the problems, a cycle's once for each of its nodes."""
        for problem in self._problems:
            if problem.type != "dependency_cycle":
                yield problem
                continue
            members: Sequence[str] = problem.extra["cycle_nodes"]
            kinds = {member: str(self._prompt[member]["class_type"]) for member in members}
            path = " -> ".join(f"{member} ({kinds[member]})" for member in [*members, members[0]])
            # Each node's error lists the whole cycle.
            for member in members[:LISTED]:
                extra = {**problem.extra, "node_id": member}
                yield replace(problem, node_id=member, class_type=kinds[member], details=path, extra=extra)

    def refusal(self) -> dict[str, Any]:
        """Return the whole 400 body: the one problem of the prompt, or all problems of its outputs."""
        # A missing class is found before outputs are validated.
        for problem in sorted(self._problems, key=lambda problem: problem.type == "prompt_no_outputs"):
            if whole := self._whole(problem):
                return {"error": whole, "node_errors": {}}
        errors = self.by_node()
        of_outputs = [error for output in self._outputs if output in errors for error in errors[output]["errors"]]
        details = "\n".join(f"{error['message']}: {error['details']}" for error in of_outputs)
        return {
            "error": _worded("prompt_outputs_failed_validation", "Prompt outputs failed validation", details),
            "node_errors": errors,
        }

    def _whole(self, problem: Problem) -> dict[str, Any] | None:
        """Return a problem that ComfyUI answers alone, as it prevents further validation."""
        match problem.type:
            case "missing_node_type":
                node = self._prompt.get(problem.node_id or "")
                meta = node.get("_meta") if isinstance(node, Mapping) else None
                class_type = problem.extra.get("class_type")
                title = meta.get("title") if isinstance(meta, Mapping) else None
                if class_type is None:
                    why = "has no class_type. The workflow may be corrupted or a custom node is missing."
                    message = f"Node '{title or f'ID #{problem.node_id}'}' {why}"
                else:
                    title = title or class_type
                    message = f"Node '{title}' not found. The custom node may not be installed."
                info = {"node_id": problem.node_id, "class_type": class_type, "node_title": title}
                return _worded(problem.type, message, f"Node ID '#{problem.node_id}': {problem.message}", info)
            case "prompt_no_outputs":
                return _worded(problem.type, "Prompt has no outputs")
            case "invalid_prompt":
                where = "" if problem.node_id is None else f"Node ID '#{problem.node_id}'"
                return _worded(problem.type, problem.message, where)
        return None

    def _error(self, problem: Problem) -> dict[str, Any]:
        if self._is_exception(problem):
            return self._exception(problem)
        extra = dict(problem.extra)
        name, received = extra.get("input_name", ""), extra.get("received_value")
        if "received_value" in extra:
            extra["received_value"] = received = self._received(problem)
        declared = None
        if (spec := self._specs.get(problem.class_type or "")) is not None:
            node = self._prompt.get(problem.node_id or "")
            inputs = node.get("inputs") if isinstance(node, Mapping) else None
            declared = opened(spec, inputs if isinstance(inputs, Mapping) else {}).input(name)
        given = None if declared is None else config(declared, self._choices)
        listed = () if given is None else given[1]["options"] if given[0] == "COMBO" else given[0]
        options = {} if declared is None else declared.options
        message, details = _MESSAGES.get(problem.type, problem.message), str(name)
        match problem.type:
            case "required_input_missing" if spec is not None and spec.input(name) is None:
                details = details.rpartition(".")[-1]  # what a choice has brought is named without it
            case "return_type_mismatch":
                wanted = given[0] if given else "*"
                details = f"{name}, received_type({extra.get('received_type')}) mismatch input_type({wanted})"
                extra.pop("received_value", None)
            case "value_smaller_than_min" | "value_bigger_than_max" if declared is not None:
                # It was converted before it was compared.
                extra["received_value"] = received = CONVERSIONS[declared.type](received)
                end = "smaller than min" if problem.type == "value_smaller_than_min" else "bigger than max"
                message = f"Value {received} {end} of {options.get(end[-3:])}"
            case "invalid_input_type":
                message = f"Failed to convert an input value to a {declared.type if declared else 'known'} value"
                details = f"{name}, {received}, {extra.get('exception_message', problem.message)}"
                extra.setdefault("exception_message", problem.message)
            case "value_not_in_list":
                few = len(listed) <= LISTED
                details = f"{name}: {received!r} not in {listed if few else f'(list of length {len(listed)})'}"
                details += f"; {extra['format_not_read']}" if "format_not_read" in extra else ""
                given = given if few else None
            case "custom_validation_failed" | "dependency_cycle":
                details = problem.details or details
        if "input_config" in extra:
            extra["input_config"] = given
        return _worded(problem.type, message, details, extra)

    def _received(self, problem: Problem) -> Any:
        """Return the input's value, unless it is too long to be repeated."""
        value = self._given(problem)
        if isinstance(value, Mapping) and WRAPPED in value:
            value = value[WRAPPED]
        return value if len(json.dumps(value)) <= REPEATED else short_repr(value)

    def _given(self, problem: Problem) -> Any:
        return self._prompt[problem.node_id or ""]["inputs"].get(problem.extra.get("input_name"))

    def _is_exception(self, problem: Problem) -> bool:
        """Whether ComfyUI raises an exception there, as for a well-formed link to a missing node."""
        if problem.type == "bad_linked_input":
            return len(self._given(problem)) == 2
        return problem.type == "exception_during_validation"

    def _exception(self, problem: Problem) -> dict[str, Any]:
        """Return an exception as an output node's own error, or else as an error of the node's consumer."""
        info = {"exception_type": "LookupError", "traceback": [], **problem.extra}
        info = {name: info[name] for name in ("exception_type", "traceback")}
        details = problem.details or problem.message
        if problem.node_id in self._outputs:
            type_ = "exception_during_validation"
            return _worded(type_, _MESSAGES[type_], details, info)
        type_ = "exception_during_inner_validation"
        consumer = {"exception_message": details, **self._consumer(problem.node_id)}
        return _worded(type_, _MESSAGES[type_], details, {**info, **consumer})

    def _consumer(self, node_id: str | None) -> dict[str, Any]:
        """Return the first input of a needed node that links to this one."""
        needed = {node for ancestors in self._outputs.values() for node in ancestors}
        for other in (self._prompt[node] for node in self._prompt if node in needed):
            for name, value in other.get("inputs", {}).items():
                if isinstance(value, list) and len(value) == 2 and str(value[0]) == node_id:
                    return {"input_name": name, "linked_node": value}
        return {}


async def explained(
    error: InvalidGraphError,
    body: Mapping[str, Any],
    specs: Mapping[str, NodeSpec],
    choices: Callable[[set[str]], Any],
) -> dict[str, Any]:
    """Return the 400 body for a refused graph."""
    found = NodeErrors(
        body["prompt"], error.problems, specs, await choices(folders(error.problems, specs)), _targets(body)
    )
    return found.refusal()


def folders(problems: Sequence[Problem], specs: Mapping[str, NodeSpec]) -> set[str]:
    """Return the folders whose file names the errors repeat."""
    classes = {problem.class_type for problem in problems} & specs.keys()
    return {i.folder for name in classes if name is not None for i in specs[name].inputs if i.folder is not None}


def _targets(body: Mapping[str, Any]) -> Sequence[str] | None:
    targets: Sequence[str] | None = body.get("partial_execution_targets")
    return targets


def _worded(type_: str, message: str, details: str = "", extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"type": type_, "message": message, "details": details, "extra_info": dict(extra or {})}
