"""Parses wire JSON to a Graph, and back: structural checks, without knowledge of node classes.

The shape is ComfyUI's API format: {id: {"class_type": …, "inputs": {name: constant or [id, slot]}}}. A list is a link;
a constant that is a list is sent as {"__value__": [...]}. A node may carry its fingerprint; other keys (`_meta`, …) are
ignored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from serve_app.errors import InvalidGraphError, Problem, short_repr
from serve_app.graph.graph import BadLink, Graph, Link, Node

DEPTH_LIMIT = 64
"""How deep a constant may nest. Hashing and storing recurse, so an absurd depth has to stop here."""

DIGITS_LIMIT = 4000
"""How many digits an integer may have; Python refuses to write one of more than 4300."""

NAME_LIMIT = 500
"""How many characters a node id, class name or input name may have; every error that concerns one repeats it."""

WRAPPED = "__value__"
FINGERPRINT = "is_changed"
"""The key of a node's fingerprint on the wire, ComfyUI's own."""


def parse(prompt: Any) -> Graph:
    """Return the graph that the wire JSON describes.

    Errors: InvalidGraphError with every structural problem: not an object, no class_type, inputs that are no object, a
    constant that cannot be stored (nested too deep, NaN, broken Unicode).
    """
    if not isinstance(prompt, Mapping):
        given = _kind(prompt)
        message = f"the prompt is {given}; it must be an object of nodes by id"
        raise InvalidGraphError([Problem("invalid_prompt", message)])
    problems = [problem for key, given in prompt.items() for problem in _faults(str(key), given)]
    if problems:
        raise InvalidGraphError(problems)
    return built(prompt)


def built(prompt: Mapping[str, Any]) -> Graph:
    """Return the graph of valid wire JSON, which `parse` has accepted or `render` has made."""
    return Graph({str(key): _node(str(key), given) for key, given in prompt.items()})


def _node(node_id: str, given: Mapping[str, Any]) -> Node:
    inputs = {str(name): _value(value) for name, value in given.get("inputs", {}).items()}
    return Node(node_id, given["class_type"], inputs, given.get(FINGERPRINT))


def render(graph: Graph) -> dict[str, Any]:
    """Return the graph as wire JSON; `parse` undoes it."""
    return {node.id: _rendered(node) for node in graph.nodes.values()}


def _rendered(node: Node) -> dict[str, Any]:
    wire: dict[str, Any] = {
        "class_type": node.class_type,
        "inputs": {name: _wire(value) for name, value in node.inputs.items()},
    }
    return wire if node.fingerprint is None else {**wire, FINGERPRINT: node.fingerprint}


def _faults(node_id: str, given: Any) -> Iterator[Problem]:
    if _bad_name(node_id):
        yield Problem("invalid_prompt", f"the node id {short_repr(node_id)} {_bad_name(node_id)}")
        return
    if not isinstance(given, Mapping):
        message = f"node {short_repr(node_id)} is {_kind(given)}; it must be an object"
        yield Problem("invalid_prompt", message, node_id=node_id)
        return
    class_type = given.get("class_type")
    known = class_type if isinstance(class_type, str) and not _bad_name(class_type) else None
    if known is None:
        reason = "has no class_type" if class_type is None else f"has {_kind(class_type)} as class_type"
        if isinstance(class_type, str):
            reason = f"has a class_type that {_bad_name(class_type)}"
        extra = {"node_id": node_id, "class_type": None, "node_title": None}
        message = f"node {short_repr(node_id)} {reason}; it must be a string"
        yield Problem("missing_node_type", message, node_id=node_id, extra=extra)
    inputs = given.get("inputs", {})
    if not isinstance(inputs, Mapping):
        message = f"its inputs are {_kind(inputs)}; they must be an object"
        yield Problem("invalid_prompt", message, node_id=node_id, class_type=known)
        return
    for name, value in {**inputs, FINGERPRINT: given.get(FINGERPRINT)}.items():
        reason = _bad_name(str(name)) or unstorable(value)
        if reason:
            extra = {"input_name": ascii(name)[:NAME_LIMIT]}
            message = f"input {short_repr(name)} {reason}"
            yield Problem("invalid_input_type", message, node_id=node_id, class_type=known, extra=extra)


def _bad_name(name: str) -> str:
    return f"has more than {NAME_LIMIT} characters" if len(name) > NAME_LIMIT else unstorable(name)


def unstorable(value: Any) -> str:
    """Return why a JSON value cannot be stored and hashed, e.g. "holds NaN", or "" if it can."""
    if isinstance(value, str) and value.isascii():  # like names, of which every submission has many
        return ""
    stack = [(value, 0)]
    while stack:
        item, depth = stack.pop()
        if isinstance(item, str):
            if not item.isascii() and any("\ud800" <= c <= "\udfff" for c in item):
                return "holds half a surrogate pair, which is no Unicode text"
        elif isinstance(item, float):
            if not math.isfinite(item):
                return f"holds {item}, which is no JSON number"
        elif isinstance(item, int):
            if item.bit_length() > DIGITS_LIMIT * math.log2(10):
                return f"holds an integer of more than {DIGITS_LIMIT} digits"
        elif isinstance(item, Mapping | list | tuple):
            if depth == DEPTH_LIMIT:
                return f"is nested deeper than {DEPTH_LIMIT} levels"
            children = [*item.keys(), *item.values()] if isinstance(item, Mapping) else item
            stack.extend((child, depth + 1) for child in children)
        elif item is not None:
            return f"holds {type(item).__name__}, which is no JSON value"
    return ""


def _value(value: Any) -> Any:
    if isinstance(value, Mapping) and WRAPPED in value:
        return value[WRAPPED]
    if not isinstance(value, list):
        return value
    if len(value) == 2 and isinstance(value[1], int):
        source, slot = value[0], int(value[1])  # true is slot 1, as it is in Python
        if isinstance(source, str):
            return Link(source, slot)
        if isinstance(source, int | float) and not isinstance(source, bool):
            return Link(str(int(source)) if source == int(source) else str(source), slot)
    return BadLink(value)


def _wire(value: Any) -> Any:
    if isinstance(value, Link):
        return [value.node_id, value.slot]
    if isinstance(value, BadLink):
        return value.value
    if isinstance(value, list) or (isinstance(value, Mapping) and WRAPPED in value):
        return {WRAPPED: value}
    return value


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "a boolean", str: "a string", list: "a list", int: "a number", float: "a number"}
    return "an object" if isinstance(value, Mapping) else names.get(type(value), type(value).__name__)
