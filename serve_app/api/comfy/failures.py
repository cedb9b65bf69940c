"""Errors in the format of ComfyUI's clients: {"error": {type, message, details, extra_info}, "node_errors": {}}.

Where ComfyUI answers without a body, for a missing file or route, so does this. Its assets have errors of their own:
{"error": {code, message, details}}.
"""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from serve_app import log
from serve_app.api.comfy.assets.items import AssetRefusedError, refusal_response
from serve_app.api.comfy.body import empty
from serve_app.api.problems import headers_of, reason_for
from serve_app.api.strict_json import JsonResponse
from serve_app.errors import (
    BodyTooLargeError,
    FileMissingError,
    ForbiddenError,
    ForbiddenPathError,
    ForeignPageError,
    InvalidGraphError,
    InvalidSubmissionError,
    JobMissingError,
    JobUnfinishedError,
    ModelFileError,
    QuotaError,
    SlowBodyError,
    UnauthenticatedError,
    UnavailableError,
    UserMissingError,
)

_EMPTY: dict[type[Exception], int] = {
    FileMissingError: 404,
    ModelFileError: 404,
    ForbiddenPathError: 403,
    UserMissingError: 401,
}
"""Errors that are answered by their status code alone."""

_WORDED: dict[type[Exception], tuple[int, str, str]] = {
    InvalidGraphError: (400, "invalid_prompt", "The workflow cannot run"),
    InvalidSubmissionError: (400, "invalid_request", "The request cannot be read"),
    UnauthenticatedError: (401, "unauthorized", "The request needs credentials"),
    ForbiddenError: (403, "forbidden", "The credentials do not allow this"),
    JobMissingError: (404, "job_not_found", "There is no such job"),
    JobUnfinishedError: (409, "job_unfinished", "The job has not ended"),
    ForeignPageError: (403, "foreign_page", "The request comes from a page of another site"),
    SlowBodyError: (408, "body_too_slow", "The request body takes too long"),
    BodyTooLargeError: (413, "body_too_large", "The request body is too large"),
    QuotaError: (429, "quota_exceeded", "The tenant has as much as its quota allows"),
    UnavailableError: (503, "server_unavailable", "The server cannot take the request now"),
}


def failure(status_code: int, type_: str, message: str, details: str = "", **more: Any) -> Response:
    """Return the native error body; `extra_info` and `node_errors` may be given."""
    error = {"type": type_, "message": message, "details": details, "extra_info": more.get("extra_info", {})}
    return JsonResponse({"error": error, "node_errors": more.get("node_errors", {})}, status_code, more.get("headers"))


def answer(request: Request, error: Exception) -> Response:
    """Return the answer to a failed request; log unexpected errors."""
    if isinstance(error, AssetRefusedError):
        return refusal_response(error)
    if isinstance(error, HTTPException):
        return Response(status_code=error.status_code, headers=error.headers)
    for kind in type(error).__mro__:
        if kind in _EMPTY:
            return empty(_EMPTY[kind])
        if kind in _WORDED:
            status_code, type_, message = _WORDED[kind]
            return failure(status_code, type_, message, reason_for(request, error), headers=headers_of(error))
    log.get("api").error("%s %s failed", request.method, request.url.path, exc_info=error)
    return failure(500, "server_error", "The request failed for a reason that is in the server's log")
