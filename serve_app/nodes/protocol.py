"""ComfyUI's V1 node class protocol, read off a class as data: INPUT_TYPES, RETURN_TYPES, FUNCTION and the rest.

This is the plugin API, for the built-in nodes too. Beyond ComfyUI's own, a class may ask for the hidden inputs RUNTIME
and STORE (`runtime.py`), and may say which folder a choice of files comes from (`FolderChoice`).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any, cast

from serve_app.errors import NodeError
from serve_app.graph.spec import EVERYTHING, Input, NodeSpec, Section

SECTIONS: tuple[Section, ...] = ("required", "optional")


class FolderChoice(list[str]):
    """The choices of a COMBO that are the files of a folder; a plain list to any other reader of the protocol.

    folder: a folder of the catalog ("checkpoints", …), or "input" for uploaded files. The list may be empty: the names
    are read from the folder whenever they are needed.
    """

    def __init__(self, folder: str, names: Iterable[str] = ()) -> None:
        super().__init__(names)
        self.folder = folder


def spec_of(node_class: type, class_type: str, display_name: str = "") -> NodeSpec:
    """Return the class as data. Errors: NodeError for a class that does not keep to the protocol."""
    try:
        declared = cast(Any, node_class).INPUT_TYPES()
        outputs = tuple(_type_name(kind) for kind in getattr(node_class, "RETURN_TYPES", ()))
        names = getattr(node_class, "RETURN_NAMES", None) or outputs
        lists = getattr(node_class, "OUTPUT_IS_LIST", None) or (False,) * len(outputs)
        function = getattr(node_class, "FUNCTION", None)
        if not isinstance(function, str) or not callable(getattr(node_class, function, None)):
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
            not_idempotent=bool(getattr(node_class, "NOT_IDEMPOTENT", False)),
            category=str(getattr(node_class, "CATEGORY", "sd")),
            display_name=display_name or class_type,
            description=str(getattr(node_class, "DESCRIPTION", "")),
            python_module=str(getattr(node_class, "RELATIVE_PYTHON_MODULE", "nodes")),
            output_tooltips=tuple(str(text or "") for text in getattr(node_class, "OUTPUT_TOOLTIPS", None) or ()),
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
            choices: tuple[Any, ...] | None = None
            if isinstance(kind, list | tuple):
                choices = tuple(c if _is_json(c) else str(c) for c in kind)
            elif kind == "COMBO" and isinstance(options.get("options"), list | tuple):
                choices = tuple(options.pop("options"))
            folder = (
                kind.folder if isinstance(kind, FolderChoice) else _uploads(options) if choices is not None else None
            )
            yield Input(
                name=str(name),
                type=_type_name(kind),
                section=section,
                choices=None if folder is not None else choices,
                folder=folder,
                options={str(key): json.loads(json.dumps(value)) for key, value in options.items() if _is_json(value)},
            )


def _uploads(options: Mapping[str, Any]) -> str | None:
    """Return "input" for a choice that a client may upload to, so that its list is not older than the upload."""
    uploads = any(options.get(name) is True for name in ("image_upload", "video_upload", "audio_upload", "file_upload"))
    return "input" if uploads and options.get("image_folder", "input") == "input" else None


def _validator(node_class: type) -> tuple[str, ...] | None:
    """Return the arguments VALIDATE_INPUTS takes, as `NodeSpec.validator`."""
    hook = getattr(node_class, "VALIDATE_INPUTS", None)
    if hook is None:
        return None
    parameters = inspect.signature(hook).parameters.values()
    names = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    return (*names, EVERYTHING) if any(p.kind == p.VAR_KEYWORD for p in parameters) else names


def _hidden_kind(kind: Any) -> str:
    # A hidden input may also be declared as any other, (type, options): a value that no widget and no socket shows.
    return _type_name(kind[0] if isinstance(kind, tuple) and kind else kind)


def _type_name(kind: Any) -> str:
    # Packs make types of str subclasses whose comparisons lie ("*" equals all); the text itself is what travels.
    if isinstance(kind, str):
        return str.__str__(kind)
    if isinstance(kind, list | tuple):
        return "COMBO"
    raise TypeError(f"{kind!r} is no type; it must be a string or a list of choices")


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True
