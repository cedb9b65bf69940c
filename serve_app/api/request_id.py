"""Request ids: each request has one, which its answer, the log lines about it and the job that it makes have too.

A client may choose it, so that its own logs can be joined with the server's. With traces, a request that may change
something is a span, in the client's trace if it sends a `traceparent`.
"""

from __future__ import annotations

import re
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app import log, tracing
from serve_app.tracing import TRACEPARENT

HEADER = "X-Request-ID"
"""The header with the id, in requests and answers."""
V2_HEADER = "X-Comfy-Request-Id"
"""The header of answers in which clients of Comfy API v2 look for it."""
_FORM = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


class RequestIdMiddleware:
    """Middleware that gives each request its id: the client's own if it has the form of one, else a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and its answer with the header."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(HEADER.lower().encode(), b"")
        name = given if _FORM.fullmatch(given) else str(uuid.uuid4()).encode()
        added = [(HEADER.lower().encode(), name)]
        if scope.get("dialect") == "v2":
            added.append((V2_HEADER.lower().encode(), name))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        with log.about(request=name.decode()):
            if scope.get("method") != "POST":
                await self._app(scope, receive, send_with_id)
                return
            parent = headers.get(TRACEPARENT.encode(), b"").decode("latin-1") or None
            about = {"http.request.method": "POST", "url.path": scope["path"], "request": name.decode()}
            with tracing.span("POST", parent, **about):
                await self._app(scope, receive, send_with_id)
