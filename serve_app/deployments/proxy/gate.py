"""ASGI middleware for Serve's HTTP proxy that answers in the contract's form while the application is not available.

Serve's proxy answers 404 for routes it does not know yet, lets requests wait for replicas that are still starting,
words its own errors as plain text, and answers nothing when a replica dies with a request in hand. This ASGI middleware
turns these into the contract's 503. The proxy loads it by the environment's RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH.
The proxy's own errors are recognised by their headers: plain text without a length, which the application always sets.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from starlette.middleware import Middleware

from serve_app import log
from serve_app.deployments.proxy import http_protocol

Message: TypeAlias = MutableMapping[str, Any]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Receive: TypeAlias = Callable[[], Awaitable[Message]]

STARTING_S = 3.0
"""How long a request may wait for its first byte until the application has answered once."""
RETRY_AFTER_S = 1
SERVES_LOGGER = "ray.serve"


class Gate:
    """The state of one proxy. `is_open` once the application has answered."""

    def __init__(self, app: Callable[[Any, Receive, Send], Awaitable[None]]) -> None:
        self._app = app
        self.is_open = False

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/-/"):
            await self._app(scope, receive, send)
            return
        screen = _Screen(send)
        answering = asyncio.ensure_future(self._app(scope, receive, screen.send))
        if not self.is_open:
            answered = asyncio.ensure_future(screen.answered.wait())
            await asyncio.wait({answering, answered}, timeout=STARTING_S, return_when=asyncio.FIRST_COMPLETED)
            answered.cancel()
            if not screen.answered.is_set():
                answering.cancel()
                await _unavailable(send, "the server is starting")
                return
            self.is_open = not screen.screened
        try:
            await answering
        except asyncio.CancelledError:
            answering.cancel()
            raise
        if not screen.answered.is_set():
            await _unavailable(send, "the process that had the request has died")


class _Screen:
    """Passes one response on, unless it is an error of the proxy's own."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.answered = asyncio.Event()
        self.screened = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = dict(message.get("headers", ()))
            plain = headers.get(b"content-type", b"").startswith(b"text/plain") and b"content-length" not in headers
            self.screened = message["status"] >= 400 and plain
            self.answered.set()
            if self.screened:
                await _unavailable(self._send, "the application is not there to answer")
        if not self.screened:
            await self._send(message)


async def _unavailable(send: Send, detail: str) -> None:
    body = json.dumps({"error": "Server not ready", "detail": detail, "status_code": 503}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", str(RETRY_AFTER_S).encode()),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def middlewares() -> list[Middleware]:
    """Return what Serve's proxy is to put around itself. Its server is made later, and drops trailers too."""
    http_protocol.install()
    log.escape(SERVES_LOGGER)
    return [Middleware(Gate)]
