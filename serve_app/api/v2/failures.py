"""Errors in the format of Comfy API v2: {"error": {code, message, details}}, with the status of the code.

Source: the public description of Comfy API v2 (openapi-v2.yaml, version 2.0.0) and comfy-sdk 0.5.0. A 429 with
Retry-After asks a client to repeat the request, so every temporary refusal is one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from serve_app import log
from serve_app.api.problems import headers_of, reason_for
from serve_app.api.strict_json import JsonResponse
from serve_app.errors import (
    BodyTooLargeError,
    ConcurrencyLimitError,
    DrainingError,
    FileMissingError,
    ForbiddenError,
    ForeignPageError,
    InvalidGraphError,
    InvalidSubmissionError,
    JobMissingError,
    KeyReusedError,
    NotReadyError,
    QueueFullError,
    QuotaError,
    ServeAppError,
    SlowBodyError,
    UnauthenticatedError,
    UnavailableError,
)

CODES: Mapping[str, int] = {
    "invalid_request": 400,
    "invalid_cursor": 400,
    "invalid_metadata_filter": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "forbidden_origin": 403,
    "not_found": 404,
    "blob_not_found": 404,
    "output_unavailable": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "hash_mismatch": 409,
    "asset_in_use": 409,
    "payload_too_large": 413,
    "range_not_satisfiable": 416,
    "invalid_workflow": 422,
    "workflow_format_ui": 422,
    "missing_asset": 422,
    "metadata_invalid": 422,
    "idempotency_key_reuse": 422,
    "queue_full": 429,
    "deployment_not_ready": 429,
    "too_many_streams": 429,
    "rate_limited": 429,
    "upstream_error": 500,
    "upstream_unreachable": 503,
}
"""The status of every code."""

_KINDS: Mapping[type[Exception], str] = {
    InvalidSubmissionError: "invalid_request",
    UnauthenticatedError: "unauthorized",
    ForbiddenError: "forbidden",
    ForeignPageError: "forbidden_origin",
    JobMissingError: "not_found",
    FileMissingError: "not_found",
    SlowBodyError: "request_timeout",
    BodyTooLargeError: "payload_too_large",
    InvalidGraphError: "invalid_workflow",
    KeyReusedError: "idempotency_key_reuse",
    QueueFullError: "queue_full",
    QuotaError: "rate_limited",
    NotReadyError: "deployment_not_ready",
    DrainingError: "deployment_not_ready",
    ConcurrencyLimitError: "rate_limited",
    UnavailableError: "upstream_unreachable",
}
"""The code by class; a subclass without its own entry takes its parent's."""

_ROUTING = {CODES[code]: code for code in ("not_found", "method_not_allowed")}


class CodedError(ServeAppError):
    """A request that v2 refuses by one of its CODES."""

    def __init__(
        self,
        code: str,
        message: str,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.details, self.headers = code, details, dict(headers or {})


def answer(request: Request, error: Exception) -> Response:
    """Return the answer to a failed request; log unexpected errors."""
    if isinstance(error, CodedError):
        return _failure(CODES[error.code], error.code, str(error), error.details, error.headers)
    if isinstance(error, HTTPException):
        code = _ROUTING.get(error.status_code, "invalid_request")
        message = f"{request.method} {request.url.path}: {error.detail}"
        return _failure(error.status_code, code, message, headers=dict(error.headers or {}))
    for kind in type(error).__mro__:
        if kind in _KINDS:
            code = _KINDS[kind]
            details = {"node_errors": node_errors(error, {})} if isinstance(error, InvalidGraphError) else None
            return _failure(CODES[code], code, reason_for(request, error), details, headers_of(error))
    log.get("api").error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _failure(500, "upstream_error", "the request failed for a reason that is in the server's log")


def _failure(
    status_code: int,
    code: str,
    message: str,
    details: Mapping[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    return JsonResponse({"error": {"code": code, "message": message, "details": details}}, status_code, headers)


def node_errors(error: InvalidGraphError, needed: Mapping[str, Collection[str]]) -> dict[str, Any]:
    """Return the problems of nodes by node, with ComfyUI's members.

    needed: the nodes that each output needs.
    """
    found: dict[str, Any] = {}
    for problem in error.problems:
        if problem.node_id is not None:
            dependent = [output for output, nodes in needed.items() if problem.node_id in nodes]
            shape = {"class_type": problem.class_type, "errors": [], "dependent_outputs": dependent}
            entry = found.setdefault(problem.node_id, shape)
            summary = {"type": problem.type, "message": problem.message, "details": problem.details}
            entry["errors"].append({**summary, "extra_info": dict(problem.extra)})
    return found
