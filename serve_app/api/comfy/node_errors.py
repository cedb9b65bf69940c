"""What is wrong with a graph, in ComfyUI's words: `error` and `node_errors` of the answer to POST /prompt.

Clients match on the types and show the texts, so both are ComfyUI's own. Source: comfyui 0.3.64 `execution.py`,
validate_prompt and validate_inputs; `missing_node_type` as 0.38.1 has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from serve_app.api.comfy.object_info import config
from serve_app.errors import InvalidGraphError, Problem
from serve_app.graph.ancestry import ancestry
from serve_app.graph.dynamic import opened
from serve_app.graph.spec import NodeSpec

LISTED = 20
"""A list of more choices than this is not repeated in an error."""

_MESSAGES = {
    "required_input_missing": "Required input is missing",
    "bad_linked_input": "Bad linked input, must be a length-2 list of [node_id, slot_index]",
    "return_type_mismatch": "Return type mismatch between linked nodes",
    "value_not_in_list": "Value not in list",
    "custom_validation_failed": "Custom validation failed for node",
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
        for problem in self._problems:
            dependent = [output for output, needed in self._outputs.items() if problem.node_id in needed]
            if problem.node_id is None or not dependent:
                continue
            entry = found.setdefault(
                problem.node_id, {"errors": [], "dependent_outputs": dependent, "class_type": problem.class_type}
            )
            entry["errors"].append(self._error(problem))
        return found

    def refusal(self) -> dict[str, Any]:
        """Return the whole 400 body: the one thing that is wrong with the prompt, or all that is with its outputs."""
        for problem in self._problems:
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
        """Return a problem that ComfyUI answers alone, for there is no judging the rest beside it."""
        match problem.type:
            case "missing_node_type":
                node = self._prompt.get(problem.node_id or "")
                meta = node.get("_meta") if isinstance(node, Mapping) else None
                class_type = problem.extra.get("class_type")
                title = meta.get("title") if isinstance(meta, Mapping) else None
                title = title or class_type or problem.node_id
                message = f"Node '{title}' not found. The custom node may not be installed."
                info = {"node_id": problem.node_id, "class_type": class_type, "node_title": title}
                return _worded(problem.type, message, f"Node ID '#{problem.node_id}': {problem.message}", info)
            case "prompt_no_outputs":
                return _worded(problem.type, "Prompt has no outputs")
            case "dependency_cycle":
                return _worded(problem.type, "Dependency cycle detected", problem.message, problem.extra)
            case "invalid_prompt":
                where = "" if problem.node_id is None else f"Node ID '#{problem.node_id}'"
                return _worded(problem.type, problem.message, where)
        return None

    def _error(self, problem: Problem) -> dict[str, Any]:
        extra = dict(problem.extra)
        if problem.type == "bad_linked_input":
            extra["received_value"] = self._prompt[problem.node_id or ""]["inputs"].get(extra.get("input_name"))
        if problem.type == "bad_linked_input" and len(extra["received_value"]) == 2:
            # A link in the right form that leads nowhere is an exception to ComfyUI, by the node that stumbles over it.
            type_ = "exception_during_validation" if self._is_output(problem) else "exception_during_inner_validation"
            info = {"exception_type": "LookupError", "exception_message": problem.message, "traceback": []}
            return _worded(type_, _MESSAGES[type_], problem.message, {**info, "input_name": extra.get("input_name")})
        name, received = extra.get("input_name", ""), extra.get("received_value")
        declared = None
        if (spec := self._specs.get(problem.class_type or "")) is not None:
            node = self._prompt.get(problem.node_id or "")
            inputs = node.get("inputs") if isinstance(node, Mapping) else None
            declared = opened(spec, inputs if isinstance(inputs, Mapping) else {}).input(name)
        given = None if declared is None else config(declared, self._choices)
        options = {} if declared is None else declared.options
        message, details = _MESSAGES.get(problem.type, problem.message), str(name)
        match problem.type:
            case "return_type_mismatch":
                wanted = given[0] if given else "*"
                details = f"{name}, received_type({extra.get('received_type')}) mismatch input_type({wanted})"
                extra.pop("received_value", None)
            case "value_smaller_than_min":
                message = f"Value {received} smaller than min of {options.get('min')}"
            case "value_bigger_than_max":
                message = f"Value {received} bigger than max of {options.get('max')}"
            case "invalid_input_type":
                message = f"Failed to convert an input value to a {declared.type if declared else 'known'} value"
                details = f"{name}, {received}, {extra.get('exception_message', problem.message)}"
                extra.setdefault("exception_message", problem.message)
            case "value_not_in_list":
                listed = given[0] if given else []
                few = len(listed) <= LISTED
                details = f"{name}: '{received}' not in {listed if few else f'(list of length {len(listed)})'}"
                details += f"; {extra['format_not_read']}" if "format_not_read" in extra else ""
                given = given if few else None
            case "custom_validation_failed":
                details = problem.details or details
        if "input_config" in extra:
            extra["input_config"] = given
        return _worded(problem.type, message, details, extra)

    def _is_output(self, problem: Problem) -> bool:
        spec = self._specs.get(problem.class_type or "")
        return spec is not None and spec.output_node


async def explained(
    error: InvalidGraphError,
    body: Mapping[str, Any],
    specs: Mapping[str, NodeSpec],
    choices: Callable[[set[str]], Any],
) -> dict[str, Any]:
    """Return the 400 body for a graph that was refused."""
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
