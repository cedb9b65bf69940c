"""Leases: long requests and websockets are cut off once the credential that opened them has ended.

A request is authenticated once, but a websocket, an event stream, a long poll, a download or an upload may last for
hours. All connections of one credential share its lease, and the authentication middleware cuts them off when it ends;
no route looks at credentials. While a long connection is open, the database is asked periodically which keys are still
valid, all of them in one query.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias
from weakref import WeakValueDictionary

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app import log
from serve_app.errors import ServeAppError, UnauthenticatedError

LONG_S = 0.5
"""The credential of a shorter request is not checked again."""
CHECK_S = 1.0
"""How often leases are checked: with `authentication.KEY_S` and LONG_S, connections of a revoked key end within 5 s."""
POLICY_VIOLATION = 1008
"""The code that a websocket is closed with (RFC 6455, section 7.4.1)."""
REASON_BYTES = 123
"""How long the reason of a closed websocket may be (RFC 6455, section 5.5)."""
READS = ("GET", "HEAD", "OPTIONS")
Refuse: TypeAlias = Callable[[UnauthenticatedError], Awaitable[None]]
_log = log.get("api.lease")


class Lease:
    """How long connections of one credential may stay open.

    key_id: of an API key or a session, "" for a token. until_s: Unix time of its end, if known. ended: why it has
    ended, "" while it is valid.
    """

    def __init__(self, key_id: str = "", until_s: float = math.inf) -> None:
        self.key_id, self.until_s = key_id, until_s
        self.ended = ""
        self.connections: set[LeasedConnection] = set()

    def end(self, why: str) -> None:
        """Cut off every open connection."""
        self.ended = self.ended or why
        for connection in tuple(self.connections):
            connection.cut()


UNLIMITED = Lease()
"""The lease where no credentials are needed."""


class Leases:
    """The leases of a process. look_again: checks which keys with these ids are valid, and ends the leases of the
    others.
    """

    def __init__(self, look_again: Callable[[Sequence[str]], Awaitable[None]]) -> None:
        self._look_again = look_again
        self._leases: WeakValueDictionary[str, Lease] = WeakValueDictionary()
        self._open: set[Lease] = set()
        self._watching: asyncio.Task[None] | None = None

    def grant(self, name: str, key_id: str, until_s: float) -> Lease:
        """Return the lease of a valid credential. name: unique to it."""
        lease = self._leases.get(name)
        if lease is None or lease.ended:
            lease = self._leases[name] = Lease(key_id)
        lease.until_s = until_s
        return lease

    def end(self, name: str, why: str) -> None:
        """End a credential's lease, if it has one."""
        if (lease := self._leases.get(name)) is not None:
            lease.end(why)

    def watch(self, connection: LeasedConnection) -> None:
        """Register a connection, to be cut off once its lease has ended."""
        connection.lease.connections.add(connection)
        self._open.add(connection.lease)
        if connection.lease.ended:
            connection.cut()
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())

    def leave(self, connection: LeasedConnection) -> None:
        """Unregister a connection."""
        connection.lease.connections.discard(connection)
        if not connection.lease.connections:
            self._open.discard(connection.lease)

    def close(self) -> None:
        """Stop checking leases."""
        if self._watching is not None:
            self._watching.cancel()

    async def _watch(self) -> None:
        asking: asyncio.Task[None] | None = None
        while self._open:
            for lease in [lease for lease in self._open if lease.until_s <= time.time()]:
                lease.end("the credentials have expired")
            # Tokens expire also while the scheduler is away.
            if asking is None or asking.done():
                asking = asyncio.create_task(self._ask([lease.key_id for lease in self._open if lease.key_id]))
            await asyncio.sleep(CHECK_S)

    async def _ask(self, key_ids: Sequence[str]) -> None:
        try:
            if key_ids:
                await self._look_again(key_ids)
        except ServeAppError as error:
            _log.info("keys of open connections are not looked at: %s", error)


class LeasedConnection:
    """One request or websocket, cut off when its lease ends."""

    def __init__(self, leases: Leases, lease: Lease, scope: Scope, receive: Receive, send: Send) -> None:
        self.lease = lease
        self._leases, self._scope = leases, scope
        self._receive, self._send = receive, send
        self._limit = asyncio.timeout(None)
        self._is_socket = scope["type"] == "websocket"
        self._is_running = self._begun = self._over = self._is_event_stream = False

    async def pass_on(self, app: ASGIApp, scope: Scope, refuse: Refuse) -> bool:
        """Run the application; return whether it was cut off. refuse: answers a request that has no answer yet."""
        watching = asyncio.get_running_loop().call_later(LONG_S, self._leases.watch, self)
        try:
            async with self._limit:
                self._is_running = True
                await app(scope, self._receiving, self._sending)
        except TimeoutError:
            if not self._limit.expired():
                raise
        finally:
            self._is_running = False
            watching.cancel()
            self._leases.leave(self)
        if self._limit.expired() and not self._over:
            await self._end(refuse)
            return True
        return False

    def cut(self) -> None:
        """Stop the application; a request that changes something goes on, or ends at the next piece of its body."""
        may_stop = self._is_socket or self._begun or self._scope["method"] in READS
        if may_stop and self._is_running and self._limit.when() is None:
            self._limit.reschedule(asyncio.get_running_loop().time())

    async def _receiving(self) -> Message:
        message = await self._receive()
        if self.lease.ended and message["type"] == "http.request":
            raise UnauthenticatedError(self.lease.ended)
        return message

    async def _sending(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._is_event_stream = (b"content-type", b"text/event-stream") in [
                (name.lower(), value.partition(b";")[0]) for name, value in message.get("headers", ())
            ]
        self._begun = True
        self._over = message["type"] == "websocket.close" or (
            message["type"] == "http.response.body" and not message.get("more_body", False)
        )
        await self._send(message)
        if self.lease.ended and message.get("more_body", False):
            self.cut()

    async def _end(self, refuse: Refuse) -> None:
        """Send the reason where the protocol allows; for an answer that has begun, the server closes the connection."""
        why = self.lease.ended
        if not self._begun:
            await refuse(UnauthenticatedError(why))
        elif self._is_socket:
            reason = why.encode()[:REASON_BYTES].decode(errors="ignore")
            await self._send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": reason})
        elif self._is_event_stream:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
