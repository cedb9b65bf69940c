"""Parses /object_info of a ComfyUI to the specs of its pool.

Specs have the declared bounds of ComfyUI's core classes. Of a pack's class only its code knows the allowed values:
VALIDATE_INPUTS may widen a list, and a type may equal others by a trick that JSON does not carry. ComfyUI itself
validates these when it gets the graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from serve_app import log
from serve_app.graph.spec import EVERYTHING, Input, NodeSpec

_log = log.get("comfyui")

UPLOADS = (
    "image_upload",
    "video_upload",
    "audio_upload",
    "file_upload",
    "animated_image_upload",
    "vhs_path_extensions",
)
"""Options of inputs that name an uploaded file."""
DYNAMIC = "COMFY_"
"""The prefix of types with dynamic inputs, or with outputs of an input's type."""
OWN = ("input_types", EVERYTHING)
"""The validator of a class whose values only the class itself can check."""


def parse_object_info(described: Mapping[str, Any]) -> list[NodeSpec]:
    """Return the specs of all classes; malformed ones are left out and logged."""
    found = []
    for class_type, info in described.items():
        try:
            found.append(_spec(class_type, info))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            _log.warning("class %s is left out, its description cannot be read: %r", class_type, error)
    return found


def _spec(class_type: str, info: Mapping[str, Any]) -> NodeSpec:
    declared = info["input"]
    inputs = tuple(_inputs(declared))
    outputs = tuple(_type(output) for output in info["output"])
    module = str(info.get("python_module") or "nodes")
    dynamic = any(i.type.startswith(DYNAMIC) for i in inputs) or "*" in outputs
    return NodeSpec(
        class_type=class_type,
        inputs=inputs,
        outputs=outputs,
        output_names=tuple(map(str, info.get("output_name") or info["output"])),
        output_is_list=tuple(map(bool, info.get("output_is_list") or [False] * len(outputs))),
        hidden={str(name): _type(kind) for name, kind in (declared.get("hidden") or {}).items()},
        output_node=bool(info.get("output_node")),
        input_is_list=bool(info.get("is_input_list")),
        category=str(info.get("category") or ""),
        display_name=str(info.get("display_name") or class_type),
        description=str(info.get("description") or ""),
        python_module=module,
        deprecated=bool(info.get("deprecated")),
        experimental=bool(info.get("experimental")),
        api_node=bool(info.get("api_node")),
        validator=OWN if dynamic or module.startswith("custom_nodes") else None,
        described=info,
    )


def _inputs(declared: Mapping[str, Any]) -> Iterator[Input]:
    sections: tuple[Literal["required", "optional"], ...] = ("required", "optional")
    for section in sections:
        for name, given in (declared.get(section) or {}).items():
            kind, *rest = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
            options = rest[0] if rest and isinstance(rest[0], Mapping) else {}
            choices = kind if isinstance(kind, list) else options.get("options") if kind == "COMBO" else None
            uploaded = any(options.get(option) for option in UPLOADS)
            own = _type(kind)
            yield Input(
                name=str(name),
                type=own,
                # Only the class knows the names of the inputs that a client must give in its place.
                section="optional" if own.startswith(DYNAMIC) else section,
                # An empty list is filled from files, or fetched by the page from another route.
                choices=tuple(choices) if choices and not uploaded and "remote" not in options else None,
                folder="input" if uploaded else None,
                options=options,
            )


def _type(kind: Any) -> str:
    if isinstance(kind, list):
        return "COMBO"
    return "*" if str(kind) == "COMFY_MATCHTYPE_V3" else str(kind)
