"""How many requests one process has in hand of the kinds that last as long as a client likes.

Bodies that are still arriving, websockets and event polls cost nothing to keep open. Each kind has its own room, so
that a full one leaves the rest of the server as it was; who finds it full is told to come back.
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
from serve_app.errors import CrowdedError, SlowBodyError
from serve_app.limits import refused

MODEL_FILES = 2
RETRY_AFTER_S = 5
_ARRIVING = "arriving"
"""The key of an ASGI scope that has its body on the way."""


class Room:
    """Of one kind at most so many at once. what: their name; key: of the configuration."""

    def __init__(self, what: str, key: str, most: int) -> None:
        self._what, self._key, self._most = what, key, most
        self._inside = 0

    @property
    def use(self) -> tuple[str, float]:
        """Its key, and how full it is, 0 to 1."""
        return self._key, self._inside / self._most

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Be one of them. Errors: CrowdedError."""
        if self._inside >= self._most:
            refused(self._key)
            reason = f"this process has {self._inside} {self._what} in hand, as many as {self._key} allows"
            raise CrowdedError(reason, RETRY_AFTER_S)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1


class Crowd:
    """The rooms, and how long a body may take to arrive.

    listeners: websockets and event polls. pack_streams: of node packs, which take as many calls of a replica as well.
    logins: bodies of those who have no credentials yet, who must not keep others from the room of bodies.
    model_files: those that are uploaded, each of which takes a thread.
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
        self.bodies = Room("bodies that are still arriving", "ingress.max_bodies", bodies)
        self.listeners = Room("websockets and event polls", "ingress.max_listeners", listeners)
        streams = "long answers and websockets of node packs"
        self.pack_streams = Room(streams, "ingress.max_pack_streams", pack_streams)
        self.model_files = Room("model files that are still arriving", "model_changes.at_once", model_files)
        self.logins = Room("logins that are still arriving", "ingress.max_logins", logins)
        self.body_s, self.login_s = body_s, login_s

    @classmethod
    def of(cls, config: AppConfig) -> Crowd:
        """Return the rooms of one ingress replica, as the configuration has them."""
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
        """How full each room is, 0 to 1, by its key."""
        rooms = (self.bodies, self.listeners, self.pack_streams, self.model_files, self.logins)
        return dict(room.use for room in rooms)


def allow(request: Request, body_s: float, key: str, room: Room | None = None) -> None:
    """Let a request's body, of which nothing is read yet, take so long to arrive, in a room of its own if one is given.

    key: of the configuration, which says how long.
    """
    arriving: _Arriving | None = request.scope.get(_ARRIVING)
    if arriving is not None:
        arriving.body_s, arriving.key = body_s, key
        if room is not None:
            arriving.place = room.taken()


class Crowded:
    """Middleware that keeps bodies and websockets to their rooms; whoever reads a body is told by an error."""

    def __init__(self, app: ASGIApp, crowd: Crowd) -> None:
        self._app, self._crowd = app, crowd

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] == "http":
            with _Arriving(self._crowd, receive) as arriving:
                await self._app({**scope, _ARRIVING: arriving}, arriving.receive, send)
        elif scope["type"] == "websocket":
            try:
                with self._crowd.listeners.taken():
                    await self._app(scope, receive, send)
            except CrowdedError as error:
                await _refuse(WebSocket(scope, receive, send), error)
        else:
            await self._app(scope, receive, send)


class _Arriving:
    """One request's body, in its room from the first time that it is waited for until it is whole or the answer is."""

    def __init__(self, crowd: Crowd, receive: Receive) -> None:
        self._receive = receive
        self.body_s, self.key = crowd.body_s, "ingress.body_s"
        self.place = crowd.bodies.taken()
        self._until_s = 0.0
        self._state = "unread"

    def __enter__(self) -> _Arriving:
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    async def receive(self) -> Message:
        if self._state == "whole":
            return await self._receive()
        if self._state == "unread":
            self.place.__enter__()
            self._state, self._until_s = "arriving", asyncio.get_running_loop().time() + self.body_s
        try:
            # Not wait_for: before Python 3.12 it makes a task of what it waits for.
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
            self.place.__exit__(None, None, None)
        self._state = "whole"


async def _refuse(socket: WebSocket, error: CrowdedError) -> None:
    """Fail a handshake: with 503 where the server can send it, else with its bare 403."""
    if "websocket.http.response" in socket.scope.get("extensions", {}):
        headers = {"Retry-After": str(error.retry_after_s)}
        await socket.send_denial_response(problem(503, "Server unavailable", str(error), headers))
    else:
        await socket.close()
