"""Reads a class of ComfyUI's V1 node protocol to a NodeSpec: INPUT_TYPES, RETURN_TYPES, FUNCTION and the rest.

This is the plugin API, for the built-in nodes too. Beyond ComfyUI's own, a class may use the hidden inputs RUNTIME and
STORE (`runtime.py`), and may name the folder of a choice of files (`FolderChoice`).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

from serve_app.errors import NodeError
from serve_app.graph.spec import EVERYTHING, SECTIONS, Input, NodeSpec


class FolderChoice(list[str]):
    """The choices of a COMBO over the files of a folder; a plain list to other readers of the protocol.

    folder: a folder of the catalog ("checkpoints", …), "input" for uploaded files, or "input folders" for the folders
    that contain them. The list may be empty: the names are read from the folder when they are needed.
    """

    def __init__(self, folder: str, names: Iterable[str] = ()) -> None:
        super().__init__(names)
        self.folder = folder


def spec_of(node_class: type, class_type: str, display_name: str = "") -> NodeSpec:
    """Return a class's spec. Errors: NodeError for a class that violates the protocol."""
    try:
        declared = cast(Any, node_class).INPUT_TYPES()
        outputs = tuple(_type_name(kind) for kind in getattr(node_class, "RETURN_TYPES", ()))
        names = getattr(node_class, "RETURN_NAMES", None) or outputs
        lists = getattr(node_class, "OUTPUT_IS_LIST", None) or (False,) * len(outputs)
        function = getattr(node_class, "FUNCTION", None)
        # A class without one only shows widgets, like a legend beside a graph, and never runs.
        if function is not None and not (isinstance(function, str) and callable(getattr(node_class, function, None))):
            raise TypeError(f"FUNCTION is {function!r}; it must name a method of the class")
        return NodeSpec(
            class_type=class_type,
            inputs=tuple(_inputs(declared)),
            outputs=outputs,
            output_names=tuple(map(str, names)),
            output_is_list=tuple(map(bool, lists)),
            hidden={str(name): _hidden_kind(kind) for name, kind in declared.get("hidden", {}).items()},
            output_node=bool(getattr(node_class, "OUTPUT_NODE", False)),
            input_is_list=bool(getattr(node_class, "INPUT_IS_LIST", False)),
            accept_all_inputs=bool(getattr(node_class, "ACCEPT_ALL_INPUTS", False)) or _holds_any_name(declared),
            not_idempotent=bool(getattr(node_class, "NOT_IDEMPOTENT", False)),
            category=str(getattr(node_class, "CATEGORY", "sd")),
            display_name=display_name or class_type,
            description=str(getattr(node_class, "DESCRIPTION", "")),
            python_module=str(getattr(node_class, "RELATIVE_PYTHON_MODULE", "nodes")),
            output_tooltips=tuple(
                str(text) if text else None for text in getattr(node_class, "OUTPUT_TOOLTIPS", None) or ()
            ),
            output_matchtypes=tuple(getattr(node_class, "OUTPUT_MATCHTYPES", None) or ()),
            search_aliases=tuple(map(str, getattr(node_class, "SEARCH_ALIASES", None) or ())),
            essentials_category=getattr(node_class, "ESSENTIALS_CATEGORY", None),
            price_badge=getattr(node_class, "PRICE_BADGE", None),
            has_intermediate_output=bool(getattr(node_class, "HAS_INTERMEDIATE_OUTPUT", False)),
            dev_only=bool(getattr(node_class, "DEV_ONLY", False)),
            deprecated=bool(getattr(node_class, "DEPRECATED", False)),
            experimental=bool(getattr(node_class, "EXPERIMENTAL", False)),
            api_node=bool(getattr(node_class, "API_NODE", False)),
            validator=_validator(node_class),
            fingerprinted=hasattr(node_class, "IS_CHANGED"),
        )
    except (AttributeError, TypeError, ValueError, LookupError) as error:
        raise NodeError(f"{class_type}: {node_class.__qualname__} is no node class: {error}") from error


def _inputs(declared: Mapping[str, Any]) -> Iterable[Input]:
    for section in SECTIONS:
        for name, config in declared.get(section, {}).items():
            kind, options = config[0], dict(config[1]) if len(config) > 1 else {}
            known = {str(key): _plain(value) for key, value in options.items() if _is_json(value)}
            choices = kind if isinstance(kind, list | tuple) else options.get("options") if kind == "COMBO" else None
            if isinstance(choices, list | tuple):
                known.pop("options", None)
                found = Input.declared(str(name), section, [[c if _is_json(c) else str(c) for c in choices], known])
            else:
                found = Input.declared(str(name), section, [_type_name(kind), known])
            if isinstance(choices, FolderChoice):
                found = replace(found, choices=None, folder=choices.folder)
            yield found


def _holds_any_name(declared: Mapping[str, Any]) -> bool:
    """Whether a section is a pack's own dict that contains every name, to get undeclared constants."""
    return any("a name that nobody declares" in declared.get(section, {}) for section in (*SECTIONS, "hidden"))


def _validator(node_class: type) -> tuple[str, ...] | None:
    """Return the arguments VALIDATE_INPUTS takes, as `NodeSpec.validator`."""
    hook = getattr(node_class, "VALIDATE_INPUTS", None)
    if hook is None:
        return None
    parameters = inspect.signature(hook).parameters.values()
    names = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    return (*names, EVERYTHING) if any(p.kind == p.VAR_KEYWORD for p in parameters) else names


def _hidden_kind(kind: Any) -> str:
    # A hidden input may also be declared as (type, options): a value without widget and socket.
    return _type_name(kind[0] if isinstance(kind, tuple) and kind else kind)


def _type_name(kind: Any) -> str:
    # Packs make types of str subclasses that override comparison ("*" equals all); only the text is sent.
    if isinstance(kind, str):
        return str.__str__(kind)
    if isinstance(kind, list | tuple):
        return "COMBO"
    raise TypeError(f"{kind!r} is no type; it must be a string or a list of choices")


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True
