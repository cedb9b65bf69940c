"""Parsing a submission of Comfy API v2; each part has an error code of its own."""

from __future__ import annotations

import re
from typing import Any

from starlette.requests import Request

from serve_app.api.v2.failures import CodedError
from serve_app.errors import short_repr

KEYS = ("workflow", "extra_data", "metadata")
RESERVED = ("webhook_url", "inputs")
"""Keys that v2 reserves; their value must be null."""
CREDENTIAL = "api_key_comfy_org"

_IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]{1,255}")


def idempotency_key(request: Request) -> str | None:
    """Return a request's idempotency key, None without one. Errors: CodedError invalid_request."""
    key = request.headers.get("idempotency-key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise CodedError(
            "invalid_request", f"Idempotency-Key must be 1 to 255 printable characters, not {short_repr(key)}"
        )
    return key


def extra_data(body: dict[str, Any]) -> dict[str, Any]:
    """Return a submission's extra data for its nodes. Errors: CodedError invalid_request."""
    if "extra_data" not in body:
        return {}
    given = body["extra_data"]
    if not isinstance(given, dict) or given.keys() - {CREDENTIAL}:
        raise CodedError(
            "invalid_request", f"'extra_data' must be an object with {CREDENTIAL} alone, not {short_repr(given)}"
        )
    if not all(isinstance(value, str) for value in given.values()):
        raise CodedError("invalid_request", f"{CREDENTIAL} in 'extra_data' must be a string")
    return given


def workflow(body: dict[str, Any]) -> dict[str, Any]:
    """Return the graph of a submission, in API format. Errors: CodedError."""
    if unknown := sorted(body.keys() - {*KEYS, *RESERVED}):
        raise CodedError(
            "invalid_request", f"{short_repr(unknown[0])} is not a key of a submission; allowed are {', '.join(KEYS)}"
        )
    if reserved := next((key for key in RESERVED if body.get(key) is not None), None):
        raise CodedError("invalid_workflow", f"'{reserved}' is reserved: leave it out")
    graph = body.get("workflow")
    if not isinstance(graph, dict):
        what = f"not {short_repr(graph)}" if "workflow" in body else "and is missing"
        raise CodedError("invalid_workflow", f"'workflow' must be an object of nodes by id, {what}")
    if isinstance(graph.get("nodes"), list) and "links" in graph:
        message = "'workflow' is in the format that the web page saves; send what it exports in API format"
        raise CodedError("workflow_format_ui", message)
    return graph
