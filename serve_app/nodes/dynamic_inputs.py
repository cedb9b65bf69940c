"""How a class declares dynamic inputs in INPUT_TYPES; `graph/dynamic.py` says what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serve_app.graph.dynamic import AUTOGROW, DYNAMIC_COMBO
from serve_app.graph.spec import MATCH_TYPE


def autogrow(
    kind: tuple[Any, ...],
    *,
    name: str,
    prefix: str | None = None,
    names: Sequence[str] | None = None,
    least: int = 1,
    most: int = 10,
) -> tuple[str, dict[str, Any]]:
    """Return an input that grows: PREFIX0 to PREFIX<most − 1>, or these names; at least `least` of them linked.

    kind: one of them, as INPUT_TYPES has an input; name: what it is called.
    """
    template: dict[str, Any] = {"input": {"required": {name: kind}}, "min": least}
    template |= {"names": list(names)} if names is not None else {"prefix": prefix, "max": most}
    return (AUTOGROW, {"template": template})


def dynamic_combo(
    options: Mapping[str, Mapping[str, Any]], *, optional: bool = False, **more: Any
) -> tuple[str, dict[str, Any]]:
    """Return a choice whose options each bring inputs, by name; optional: which may all be missing."""
    section = "optional" if optional else "required"
    listed = [{"key": key, "inputs": {"required": {}, section: dict(inputs)}} for key, inputs in options.items()]
    return (DYNAMIC_COMBO, {**more, "options": listed})


def match_type(template: str, *allowed: str, **more: Any) -> tuple[str, dict[str, Any]]:
    """Return an input of a type shared with others of the template; of any type if none is allowed by name."""
    return (MATCH_TYPE, {**more, "template": {"template_id": template, "allowed_types": ",".join(allowed) or "*"}})


def combo(options: Sequence[str], **more: Any) -> tuple[str, dict[str, Any]]:
    """Return a choice as V3 classes declare it."""
    return ("COMBO", {"multiselect": False, "options": list(options), **more})
