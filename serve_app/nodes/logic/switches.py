"""The nodes that choose, compare by truth, and gather lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serve_app.errors import NodeError
from serve_app.graph.spec import MATCH_TYPE
from serve_app.nodes.dynamic_inputs import autogrow, combo, match_type

CATEGORY = "utilities/logic"
TRUTHS = autogrow(("*", {}), name="value", prefix="value")


class ComfySwitchNode:
    """One of two values, and only that one made."""

    RETURN_TYPES = (MATCH_TYPE,)
    RETURN_NAMES = ("output",)
    OUTPUT_MATCHTYPES = ("switch",)
    FUNCTION = "execute"
    CATEGORY = CATEGORY
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        either = match_type("switch", lazy=True)
        return {"required": {"switch": ("BOOLEAN", {}), "on_false": either, "on_true": either}}

    def check_lazy_status(self, switch: bool, on_false: Any = None, on_true: Any = None) -> list[str]:
        """Ask for the value that is passed on."""
        return ["on_true" if switch else "on_false"]

    def execute(self, switch: bool, on_false: Any = None, on_true: Any = None) -> tuple[Any]:
        """Pass it on."""
        return (on_true if switch else on_false,)


class ComfyNotNode:
    """Whether a value is false, by Python's rules of truth."""

    RETURN_TYPES = ("BOOLEAN",)
    FUNCTION = "execute"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("*", {})}}

    def execute(self, value: Any) -> tuple[bool]:
        """Negate."""
        return (not value,)


class ComfyAndNode:
    """Whether all values are true."""

    RETURN_TYPES = ("BOOLEAN",)
    FUNCTION = "execute"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"values": TRUTHS}}

    def execute(self, values: Mapping[str, Any]) -> tuple[bool]:
        """Look at all."""
        return (all(values.values()),)


class ComfyOrNode(ComfyAndNode):
    """Whether any value is true."""

    def execute(self, values: Mapping[str, Any]) -> tuple[bool]:
        """Look for one."""
        return (any(values.values()),)


class CustomCombo:
    """A choice from a list that its user writes on the page."""

    RETURN_TYPES = ("STRING", "INT")
    RETURN_NAMES = ("STRING", "INDEX")
    FUNCTION = "execute"
    CATEGORY = "utilities"
    EXPERIMENTAL = True
    ACCEPT_ALL_INPUTS = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"choice": combo([])}}

    @classmethod
    def VALIDATE_INPUTS(cls, choice: Any) -> bool:
        """Take any choice: the page alone knows the list."""
        return True

    def execute(self, choice: str, index: int = 0, **options: Any) -> tuple[str, int]:
        """Return the choice and its place in the list."""
        return (choice, index)


class CreateList:
    """Values, or lists of them, as one list, each element of which goes its own way."""

    RETURN_TYPES = (MATCH_TYPE,)
    RETURN_NAMES = ("list",)
    OUTPUT_MATCHTYPES = ("type",)
    OUTPUT_IS_LIST = (True,)
    INPUT_IS_LIST = True
    FUNCTION = "execute"
    CATEGORY = "utilities"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"inputs": autogrow(match_type("type"), name="input", prefix="input")}}

    def execute(self, inputs: Mapping[str, list[Any]]) -> tuple[list[Any]]:
        """Join in order."""
        return ([value for values in inputs.values() for value in values],)


class GetItemFromList:
    """One element of a list."""

    RETURN_TYPES = ("*",)
    OUTPUT_IS_LIST = (True,)
    INPUT_IS_LIST = True
    FUNCTION = "execute"
    CATEGORY = "utilities"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"list": ("*", {}), "index": ("INT", {"default": 0})}}

    def execute(self, list: Sequence[Any], index: Sequence[int]) -> tuple[Sequence[Any]]:
        """Return it, and all of its elements if it is a list itself; a negative index counts from the end.

        Errors: NodeError for an index beyond the list.
        """
        place = index[0]
        if not -len(list) <= place < len(list):
            raise NodeError(f"index {place} is beyond a list of {len(list)} elements")
        item = list[place]
        return (item if type(item) is type([]) else [item],)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "ComfySwitchNode": ComfySwitchNode,
    "ComfyNotNode": ComfyNotNode,
    "ComfyAndNode": ComfyAndNode,
    "ComfyOrNode": ComfyOrNode,
    "CustomCombo": CustomCombo,
    "CreateList": CreateList,
    "GetItemFromList": GetItemFromList,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "ComfySwitchNode": "If/Else Switch",
    "ComfyNotNode": "Not",
    "ComfyAndNode": "And",
    "ComfyOrNode": "Or",
    "CustomCombo": "Custom Combo",
    "CreateList": "Create List",
    "GetItemFromList": "Get Item From List",
}
