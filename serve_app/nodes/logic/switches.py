"""The nodes that choose, compare by truth, and gather lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from serve_app.errors import NodeError
from serve_app.graph.spec import MATCH_TYPE
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Autogrow, Combo, InputType, Int, MatchType
from serve_app.nodes.sockets import ANY, BOOLEAN, INT, STRING

CATEGORY = "utilities/logic"
Truths: TypeAlias = Annotated[Mapping[str, Any], Autogrow(InputType("*"), name="value", prefix="value")]


def _chosen(switch: bool, **given: Any) -> list[str]:
    """Ask for the value that is passed on, if one is connected."""
    chosen = "on_true" if switch else "on_false"
    return [chosen] if chosen in given else []


Either: TypeAlias = Annotated[Any, MatchType("switch", lazy=True)]


@node(
    "ComfySwitchNode",
    "If/Else Switch",
    category=CATEGORY,
    return_names=("output",),
    experimental=True,
    check_lazy_status=_chosen,
)
def comfy_switch_node(
    switch: BOOLEAN, on_false: Either = None, on_true: Either = None
) -> Annotated[Any, MatchType("switch")]:
    """One of two values, and only that one made; None for one that is not connected, as later ComfyUIs give it."""
    return on_true if switch else on_false


@node("ComfyNotNode", "Not", category=CATEGORY)
def comfy_not_node(value: Annotated[Any, InputType("*")]) -> BOOLEAN:
    """Whether a value is false, by Python's rules of truth."""
    return not value


@node("ComfyAndNode", "And", category=CATEGORY)
def comfy_and_node(values: Truths) -> BOOLEAN:
    """Whether all values are true."""
    return all(values.values())


@node("ComfyOrNode", "Or", category=CATEGORY)
def comfy_or_node(values: Truths) -> BOOLEAN:
    """Whether any value is true."""
    return any(values.values())


@node(
    "CustomCombo",
    "Custom Combo",
    category="utilities",
    return_names=("STRING", "INDEX"),
    experimental=True,
    accept_all_inputs=True,
    validate_inputs=lambda choice: True,
)
def custom_combo(choice: Annotated[str, Combo([])], index: int = 0, **options: Any) -> tuple[STRING, INT]:
    """A choice from a list that its user writes on the page, and its place in the list.

    Any choice is valid: the page alone knows the list.
    """
    return choice, index


@node(
    "CreateList",
    "Create List",
    category="utilities",
    return_types=(MATCH_TYPE,),
    output_is_list=(True,),
    return_names=("list",),
    output_matchtypes=("type",),
    input_is_list=True,
)
def create_list(
    inputs: Annotated[Mapping[str, list[Any]], Autogrow(MatchType("type"), name="input", prefix="input")],
) -> tuple[list[Any]]:
    """Values, or lists of them, as one list, each element of which goes its own way. Join in order."""
    return ([value for values in inputs.values() for value in values],)


@node("GetItemFromList", "Get Item From List", category="utilities")
def get_item_from_list(list: list[Annotated[Any, InputType("*")]], index: list[Annotated[int, Int(0)]]) -> list[ANY]:
    """One element of a list.

    Return it, and all of its elements if it is a list itself; a negative index counts from the end.

    Errors: NodeError for an index beyond the list.
    """
    place = index[0]
    if not -len(list) <= place < len(list):
        raise NodeError(f"index {place} is beyond a list of {len(list)} elements")
    item = list[place]
    return item if type(item) is type([]) else [item]
