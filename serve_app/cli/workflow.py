"""Reading a workflow file as a submission's body, and setting its inputs from the command line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from serve_app.errors import WorkflowFileError, did_you_mean
from serve_app.graph.saved.convert import convert, is_saved_by_page
from serve_app.nodes.unsupported import NOT_THERE


def read_workflow(path: Path, classes: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Return the submission in a file: a workflow as the web page saves it or in API format, or a whole body.

    classes: returns /object_info's answer; called only for a workflow that the page saved. Errors: WorkflowFileError.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise WorkflowFileError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise WorkflowFileError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise WorkflowFileError(f"{path} must hold an object of nodes by id, or a body with 'prompt'")
    if is_saved_by_page(data):
        # As with the page, the images get the original workflow, so that they can be opened there.
        known = classes()
        try:
            return {"prompt": convert(data, known, NOT_THERE), "extra_data": {"extra_pnginfo": {"workflow": data}}}
        except WorkflowFileError as error:
            raise WorkflowFileError(f"{path}: {error}") from error
    if isinstance(data.get("prompt"), dict) and "class_type" not in data["prompt"]:
        return data
    return {"prompt": data}


def with_assignments(body: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Return the body with NODE.INPUT=VALUE applied in order. Errors: WorkflowFileError with the existing names.

    VALUE is JSON where it reads as JSON, else a string. Only inputs the workflow has can be set: a misspelt one would
    otherwise change nothing, silently.
    """
    body = copy.deepcopy(body)
    nodes: dict[str, Any] = body["prompt"]
    for assignment in assignments:
        target, separator, text = assignment.partition("=")
        # A node's id may contain dots, so the longest matching id is used.
        fitting = [node_id for node_id in nodes if target.startswith(f"{node_id}.")]
        if not separator or "." not in target:
            raise WorkflowFileError(f"--set {assignment} must be NODE.INPUT=VALUE, e.g. 3.seed=7")
        if not fitting:
            given = target.partition(".")[0]
            raise WorkflowFileError(f"--set {assignment}: there is no node {given}; nodes are {', '.join(nodes)}")
        node_id = max(fitting, key=len)
        name = target.removeprefix(f"{node_id}.")
        node = nodes[node_id]
        inputs = node.get("inputs") if isinstance(node, dict) else None
        if not isinstance(inputs, dict) or name not in inputs:
            known = list(inputs) if isinstance(inputs, dict) else []
            where = f"{node.get('class_type', 'node') if isinstance(node, dict) else 'node'} {node_id}"
            hint = did_you_mean(name, known) or f"; inputs are {', '.join(known)}"
            raise WorkflowFileError(f"--set {assignment}: {where} has no input '{name}'{hint}")
        inputs[name] = _value(text)
    return body


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_not_json)
    except ValueError:
        return text


def _not_json(name: str) -> float:
    raise ValueError(name)
