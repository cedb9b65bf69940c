"""Takes from ComfyUI's OpenAPI document what `test_comfy_openapi` compares with: routes, and the names of their fields.

    python -m tests.unit.api.openapi_facts COMFYUI_DIRECTORY/openapi.yaml

Of each "METHOD /path", with {} for what a path holds: the fields of the JSON that is sent, the query's names, and the
fields of the JSON that a success answers, required ones marked "!"; "a.b" is b within a, "a[]" an element of a list.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

FACTS = Path(__file__).with_name("comfyui_openapi.json")
METHODS = ("get", "head", "post", "put", "patch", "delete")
DEPTH = 3


def facts(document: Mapping[str, Any]) -> dict[str, dict[str, list[str]]]:
    """Return what is compared of an OpenAPI document."""
    found = {}
    for path, operations in document["paths"].items():
        for method in METHODS:
            if method in operations:
                found[f"{method.upper()} {without_names(path)}"] = _route(document, operations[method])
    return dict(sorted(found.items()))


def without_names(path: str) -> str:
    """Return a path with {} for every parameter."""
    return re.sub(r"{[^}]*}", "{}", path)


def _route(document: Mapping[str, Any], operation: Mapping[str, Any]) -> dict[str, list[str]]:
    success = next((answer for status, answer in operation["responses"].items() if status.startswith("2")), {})
    asked = [_resolved(document, parameter) for parameter in operation.get("parameters", [])]
    return {
        "query": sorted(parameter["name"] for parameter in asked if parameter["in"] == "query"),
        "sent": _json_fields(document, operation.get("requestBody", {})),
        "answered": _json_fields(document, success),
    }


def _json_fields(document: Mapping[str, Any], message: Mapping[str, Any]) -> list[str]:
    content = _resolved(document, message).get("content", {}).get("application/json")
    return sorted(_fields(document, content["schema"])) if content else []


def _fields(document: Mapping[str, Any], schema: Mapping[str, Any], within: str = "", depth: int = 0) -> Iterator[str]:
    schema = _resolved(document, schema)
    if schema.get("type") == "array" and depth < DEPTH:
        yield from _fields(document, schema["items"], f"{within}[]", depth)
    for name, inner in schema.get("properties", {}).items():
        field = f"{within}.{name}" if within else name
        yield field + ("!" if name in schema.get("required", ()) else "")
        if depth + 1 < DEPTH:
            yield from _fields(document, inner, field, depth + 1)


def _resolved(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in schema:
        target: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        schema = target
    return schema


if __name__ == "__main__":
    FACTS.write_text(json.dumps(facts(yaml.safe_load(Path(sys.argv[1]).read_text())), indent=1) + "\n")
