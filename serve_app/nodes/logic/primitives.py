"""The nodes that hold one plain value, and the one that shows any."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

EDGE_ITEMS = 6
"""How many values at each end of a tensor its text has."""


class PrimitiveString:
    """A line of text."""

    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("STRING",)
    FUNCTION = "execute"
    CATEGORY = "utilities/primitive"

    options: ClassVar[Mapping[str, Any]] = {"multiline": False}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": (cls.RETURN_TYPES[0], dict(cls.options))}}

    def execute(self, value: Any) -> tuple[Any]:
        return (value,)


class PrimitiveStringMultiline(PrimitiveString):
    """Lines of text."""

    options: ClassVar[Mapping[str, Any]] = {"multiline": True}


class PrimitiveInt(PrimitiveString):
    """A whole number."""

    RETURN_TYPES = ("INT",)
    options: ClassVar[Mapping[str, Any]] = {"min": -sys.maxsize, "max": sys.maxsize, "control_after_generate": "fixed"}


class PrimitiveFloat(PrimitiveString):
    """A number."""

    RETURN_TYPES = ("FLOAT",)
    options: ClassVar[Mapping[str, Any]] = {"min": -sys.maxsize, "max": sys.maxsize, "step": 0.1}


class PrimitiveBoolean(PrimitiveString):
    """True or false."""

    RETURN_TYPES = ("BOOLEAN",)
    options: ClassVar[Mapping[str, Any]] = {}


class PreviewAny:
    """Any value as text."""

    RETURN_TYPES = ("STRING",)
    FUNCTION = "main"
    OUTPUT_NODE = True
    CATEGORY = "utilities"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"source": ("*", {})}}

    def main(self, source: Any = None) -> dict[str, Any]:
        """Show text and numbers as they are, None as "None", what JSON can write as JSON, all else as Python's str."""
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


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "PrimitiveString": PrimitiveString,
    "PrimitiveStringMultiline": PrimitiveStringMultiline,
    "PrimitiveInt": PrimitiveInt,
    "PrimitiveFloat": PrimitiveFloat,
    "PrimitiveBoolean": PrimitiveBoolean,
    "PreviewAny": PreviewAny,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "PrimitiveString": "Text",
    "PrimitiveStringMultiline": "Text (Multiline)",
    "PrimitiveInt": "Int",
    "PrimitiveFloat": "Float",
    "PrimitiveBoolean": "Boolean",
    "PreviewAny": "Preview as Text",
}
