"""Limits on how many long requests one process has open, by kind.

Bodies that are still arriving, websockets and event polls cost a client nothing to keep open. Each kind has its own
limit, so that one kind cannot starve the rest of the server; a request beyond the limit is answered 503 with
Retry-After.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from serve_app.api.problems import problem
from serve_app.config import AppConfig
from serve_app.config.ingress import BODIES, BODY_S, LISTENERS, LOGIN_S, LOGINS, PACK_STREAMS
from serve_app.config.limits import ModelChangeLimits
from serve_app.errors import ConcurrencyLimitError, SlowBodyError
from serve_app.limits import refused

MODEL_FILES = 2
RETRY_AFTER_S = 5
_LIMITED_BODY = "arriving"
"""The ASGI scope's key of a request's limited body."""


class ConcurrencyLimit:
    """A limit on concurrent requests of one kind. what: their name in errors; key: the limit's, in the
    configuration.
    """

    def __init__(self, what: str, key: str, most: int) -> None:
        self._what, self._key, self._most = what, key, most
        self._inside = 0

    @property
    def use(self) -> tuple[str, float]:
        """The key, and the used share of the limit, 0 to 1."""
        return self._key, self._inside / self._most

    @contextmanager
    def acquire(self) -> Iterator[None]:
        """Count as one of them inside the context. Errors: ConcurrencyLimitError."""
        if self._inside >= self._most:
            refused(self._key)
            reason = f"this process has {self._inside} {self._what} in hand, as many as {self._key} allows"
            raise ConcurrencyLimitError(reason, RETRY_AFTER_S)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1


class ConcurrencyLimits:
    """The limits of a process, and how long a body may take to arrive.

    listeners: websockets and event polls. pack_streams: of node packs, each of which occupies a call of a replica.
    logins: bodies of clients without credentials, which must not use up the limit of bodies. model_files: uploads of
    models, each of which takes a thread.
    """

    def __init__(
        self,
        bodies: int = BODIES,
        listeners: int = LISTENERS,
        body_s: float = BODY_S,
        pack_streams: int = PACK_STREAMS,
        model_files: int = MODEL_FILES,
        logins: int = LOGINS,
        login_s: float = LOGIN_S,
    ) -> None:
        self.bodies = ConcurrencyLimit("bodies that are still arriving", "ingress.max_bodies", bodies)
        self.listeners = ConcurrencyLimit("websockets and event polls", "ingress.max_listeners", listeners)
        streams = "long answers and websockets of node packs"
        self.pack_streams = ConcurrencyLimit(streams, "ingress.max_pack_streams", pack_streams)
        self.model_files = ConcurrencyLimit("model files that are still arriving", "model_changes.at_once", model_files)
        self.logins = ConcurrencyLimit("logins that are still arriving", "ingress.max_logins", logins)
        self.body_s, self.login_s = body_s, login_s

    @classmethod
    def of(cls, config: AppConfig) -> ConcurrencyLimits:
        """Return the configured limits of one ingress replica."""
        ingress, models = config.ingress, config.model_changes or ModelChangeLimits()
        return cls(
            ingress.max_bodies,
            ingress.max_listeners,
            ingress.body_s,
            ingress.max_pack_streams,
            models.at_once,
            ingress.max_logins,
            ingress.login_s,
        )

    @property
    def use(self) -> dict[str, float]:
        """The used share of each limit, 0 to 1, by its key."""
        limits = (self.bodies, self.listeners, self.pack_streams, self.model_files, self.logins)
        return dict(limit.use for limit in limits)


def set_body_timeout(request: Request, body_s: float, key: str, limit: ConcurrencyLimit | None = None) -> None:
    """Set how long a request's unread body may take to arrive, and the limit that it counts against, if given.

    key: the timeout's key in the configuration.
    """
    arriving: _LimitedBody | None = request.scope.get(_LIMITED_BODY)
    if arriving is not None:
        arriving.body_s, arriving.key = body_s, key
        if limit is not None:
            arriving.slot = limit.acquire()


class ConcurrencyMiddleware:
    """Middleware that applies the limits to bodies and websockets; a body over the limit raises when it is read."""

    def __init__(self, app: ASGIApp, concurrency: ConcurrencyLimits) -> None:
        self._app, self._concurrency = app, concurrency

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] == "http":
            with _LimitedBody(self._concurrency, receive) as arriving:
                await self._app({**scope, _LIMITED_BODY: arriving}, arriving.receive, send)
        elif scope["type"] == "websocket":
            try:
                with self._concurrency.listeners.acquire():
                    await self._app(scope, receive, send)
            except ConcurrencyLimitError as error:
                await _refuse(WebSocket(scope, receive, send), error)
        else:
            await self._app(scope, receive, send)


class _LimitedBody:
    """One request's body, which counts against its limit from the first read until it or the answer is complete."""

    def __init__(self, concurrency: ConcurrencyLimits, receive: Receive) -> None:
        self._receive = receive
        self.body_s, self.key = concurrency.body_s, "ingress.body_s"
        self.slot = concurrency.bodies.acquire()
        self._until_s = 0.0
        self._state = "unread"

    def __enter__(self) -> _LimitedBody:
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    async def receive(self) -> Message:
        if self._state == "whole":
            return await self._receive()
        if self._state == "unread":
            self.slot.__enter__()
            self._state, self._until_s = "arriving", asyncio.get_running_loop().time() + self.body_s
        try:
            # Not wait_for: before Python 3.12 it makes a task of its argument.
            async with asyncio.timeout_at(self._until_s):
                message = await self._receive()
        except TimeoutError as error:
            refused(self.key)
            allowed = f"{self.key} of the configuration allows {self.body_s:g} s"
            raise SlowBodyError(f"the body has not arrived in its time; {allowed}") from error
        if not message.get("more_body", False):
            self._leave()
        return message

    def _leave(self) -> None:
        if self._state == "arriving":
            self.slot.__exit__(None, None, None)
        self._state = "whole"


async def _refuse(socket: WebSocket, error: ConcurrencyLimitError) -> None:
    """Refuse a handshake: with 503 where the server can send it, else with its bare 403."""
    if "websocket.http.response" in socket.scope.get("extensions", {}):
        headers = {"Retry-After": str(error.retry_after_s)}
        await socket.send_denial_response(problem(503, "Server unavailable", str(error), headers))
    else:
        await socket.close()
