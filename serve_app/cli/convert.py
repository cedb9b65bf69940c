"""`serve-app convert`: convert a workflow that the web page saved to API format."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve_app.cli.server import ServerClient
from serve_app.errors import WorkflowFileError


def write_api_format(body: Mapping[str, Any], target: Path | None) -> int:
    """Write the body's workflow to a file, or print it without one. Errors: WorkflowFileError."""
    text = json.dumps(body["prompt"], indent=2, ensure_ascii=False)
    if target is None:
        sys.stdout.write(f"{text}\n")
        return 0
    try:
        target.write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise WorkflowFileError(f"{target}: {error.strerror}") from error
    return 0


def served_classes(server: ServerClient) -> Mapping[str, Any]:
    """Return the node classes of a server, as /object_info describes them."""
    found: dict[str, Any] = server.get("/api/object_info")
    return found


def own_classes() -> Mapping[str, Any]:
    """Return the built-in node classes in the same form, without any server and its files."""
    from serve_app.api.comfy.object_info import info
    from serve_app.nodes.registry import specs

    return {name: info(spec, {}) for name, spec in specs().items()}
