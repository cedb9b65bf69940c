"""Errors as HTTP answers: the status code, and the contract's body {error, detail, status_code}.

The table of status codes is here for all dialects. Bad input is never 422 (validation is 400). An unexpected error is a
500 that names neither code nor paths; its traceback goes to the log.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app import log
from serve_app.api.auth.principal import principal_of
from serve_app.api.strict_json import JsonResponse
from serve_app.errors import (
    BodyTooLargeError,
    DatabaseAwayError,
    DrainingError,
    FileMissingError,
    ForbiddenError,
    ForbiddenPathError,
    ForeignPageError,
    InvalidGraphError,
    InvalidSubmissionError,
    JobMissingError,
    JobUnfinishedError,
    ModelFileError,
    ModelFileInUseError,
    NotReadyError,
    QueueFullError,
    QuotaError,
    ServeAppError,
    SlowBodyError,
    UnauthenticatedError,
    UnavailableError,
    UserMissingError,
)

Answer: TypeAlias = Callable[[Request, Exception], Response]
"""Renders an error in one dialect."""

_ANSWERS: dict[type[Exception], tuple[int, str]] = {
    InvalidGraphError: (400, "Invalid workflow structure"),
    InvalidSubmissionError: (400, "Invalid submission"),
    UnauthenticatedError: (401, "Unauthorized"),
    UserMissingError: (401, "Unknown user"),
    ForbiddenError: (403, "Forbidden"),
    ForbiddenPathError: (403, "Path not allowed"),
    ForeignPageError: (403, "Request refused"),
    FileMissingError: (404, "File not found"),
    ModelFileError: (404, "Model file not found"),
    JobMissingError: (404, "Job not found"),
    JobUnfinishedError: (409, "Job has not ended"),
    ModelFileInUseError: (409, "Model file in use"),
    SlowBodyError: (408, "Request body too slow"),
    BodyTooLargeError: (413, "Request body too large"),
    NotReadyError: (503, "Server not ready"),
    QuotaError: (429, "Quota exceeded"),
    QueueFullError: (503, "Queue full"),
    DrainingError: (503, "Server is being replaced"),
    UnavailableError: (503, "Server unavailable"),
}
"""Status code and `error` text by class; a subclass without its own entry takes its parent's."""

DATABASE_AWAY = "the job database cannot be used; the server's log says why"
"""The message of a DatabaseAwayError for all but operators."""

_ROUTING = {404: "Not found", 405: "Method not allowed"}


def problem(status_code: int, error: str, detail: str, headers: dict[str, str] | None = None) -> Response:
    """Return the contract's error body."""
    body: dict[str, Any] = {"error": error, "detail": detail, "status_code": status_code}
    return JsonResponse(body, status_code, headers)


def answer(request: Request, error: Exception) -> Response:
    """Return the answer to a failed request; log unexpected errors."""
    if isinstance(error, HTTPException):
        title = _ROUTING.get(error.status_code, "Request refused")
        detail = f"{request.method} {request.url.path}: {error.detail}"
        return problem(error.status_code, title, detail, dict(error.headers or {}))
    known = next((_ANSWERS[kind] for kind in type(error).__mro__ if kind in _ANSWERS), None)
    if known is None:
        log.get("api").error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem(500, "Server error", "the request failed for a reason that is in the server's log")
    return problem(*known, reason_for(request, error), headers_of(error))


def reason_for(request: Request, error: Exception) -> str:
    """Return the reason for a failure that its caller may see: only operators see where the database is."""
    if not isinstance(error, DatabaseAwayError) or principal_of(request).may("admin"):
        return str(error)
    log.get("api").warning("%s %s: %s", request.method, request.url.path, error)
    return DATABASE_AWAY


def headers_of(error: Exception) -> dict[str, str]:
    """Return the headers of an error's answer, such as Retry-After, in every dialect."""
    if isinstance(error, UnauthenticatedError):
        return {"WWW-Authenticate": "Bearer"}
    return error.headers if isinstance(error, UnavailableError) else {}


class CatchAll:
    """Middleware that answers exceptions without a handler.

    Starlette's own last resort raises the error again after answering, which servers report a second time.
    """

    def __init__(self, app: ASGIApp, answer: Answer) -> None:
        self._app, self._answer = app, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; answer 500 if it fails before its answer has begun."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def noting_send(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noting_send)
        except ClientDisconnect:
            return  # the client has disconnected
        except Exception as error:
            if begun:
                raise
            await self._answer(Request(scope), error)(scope, receive, send)


def install(app: Starlette, answer: Answer = answer) -> None:
    """Install the error handlers of an application; with the contract's body by default."""
    app.add_exception_handler(ServeAppError, answer)
    app.add_exception_handler(HTTPException, answer)
    app.add_middleware(CatchAll, answer=answer)
