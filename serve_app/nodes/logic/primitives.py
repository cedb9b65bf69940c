"""The nodes that hold one plain value, and the one that shows any."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import torch

from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Float, InputType, Int, Text
from serve_app.nodes.sockets import BOOLEAN, FLOAT, INT, STRING

EDGE_ITEMS = 6
"""How many values at each end of a tensor its text has."""


@node("PrimitiveString", "Text", category="utilities/primitive")
def primitive_string(value: Annotated[str, Text(multiline=False)]) -> STRING:
    """A line of text."""
    return value


@node("PrimitiveStringMultiline", "Text (Multiline)", category="utilities/primitive")
def primitive_string_multiline(value: Annotated[str, Text(multiline=True)]) -> STRING:
    """Lines of text."""
    return value


@node("PrimitiveInt", "Int", category="utilities/primitive")
def primitive_int(value: Annotated[int, Int(min=-sys.maxsize, max=sys.maxsize, control_after_generate="fixed")]) -> INT:
    """A whole number."""
    return value


@node("PrimitiveFloat", "Float", category="utilities/primitive")
def primitive_float(value: Annotated[float, Float(min=-sys.maxsize, max=sys.maxsize, step=0.1)]) -> FLOAT:
    """A number."""
    return value


@node("PrimitiveBoolean", "Boolean", category="utilities/primitive")
def primitive_boolean(value: BOOLEAN) -> BOOLEAN:
    """True or false."""
    return value


@node(
    "PreviewAny",
    "Preview as Text",
    category="utilities",
    function="main",
    return_types=("STRING",),
    output_node=True,
    required=("source",),
)
def preview_any(source: Annotated[Any, InputType("*")] = None) -> dict[str, Any]:
    """Any value as text.

    Show text and numbers as they are, None as "None", what JSON can write as JSON, all else as Python's str.
    """
    # The whole process's, as ComfyUI has it from its first preview on: every node's str of a tensor is the same.
    torch.set_printoptions(edgeitems=EDGE_ITEMS)  # type: ignore[no-untyped-call]
    text = _text(source)
    return {"ui": {"text": (text,)}, "result": (text,)}


def _text(value: Any) -> str:
    if value is None or isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, list):  # the pairs of a conditioning are lists in ComfyUI
        value = [list(one) if isinstance(one, tuple) else one for one in value]
    try:
        return json.dumps(value, indent=4, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return str(value)
