"""Calls from one process to another over a TCP connection: a number, a method and its arguments, pickled in a frame.

What the scheduler is asked, by every ingress and replica, goes this way: a call of Ray's costs several times as much on
either side. Frames of one turn of the event loop leave in one write. Knows no Ray and no scheduler.

A pickle is code, so nothing is read of a peer before it has proved that it knows the server's key (a challenge answered
by HMAC, RFC 2104). The traffic itself is as open as Ray's own.
"""

from __future__ import annotations

import asyncio
import copyreg
import hashlib
import hmac
import io
import itertools
import operator
import pickle
import secrets
import socket
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NoReturn, TypeAlias, cast

from serve_app import log

_log = log.get("deployments.rpc")

CHALLENGE_BYTES, DIGEST = 32, "sha256"
PROOF_BYTES = hashlib.new(DIGEST).digest_size
LENGTH_BYTES = 8
PROVE_S = 5.0
"""The timeout of the key's proof."""
LOOK_S = 3.0
"""The interval of pings while calls are unanswered. A peer that is silent for two intervals is dead."""
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""A host that is cut off closes no connection: seconds until the kernel asks, between asking, and how often."""
PING = ""
"""The method of pings."""


class DisconnectedError(ConnectionError):
    """The connection has ended before the call was answered; whether the call was carried out is not known."""


class UnpicklableError(TypeError):
    """Arguments or an answer that must not be sent over this connection."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens, and what its callers must know."""

    host: str
    port: int
    key: bytes


RpcFrame: TypeAlias = tuple[Any, ...]
"""A call: (number, or None for one that is not answered, method, arguments). An answer: (number, whether it is an
error, value or error)."""


class Peer(asyncio.Protocol, ABC):
    """One side of a connection: frames in and out. forbidden: types that no frame may hold. ended: once it has."""

    def __init__(self, forbidden: Iterable[type]) -> None:
        self.ended = asyncio.Event()
        self._reducers = _Reducers({**copyreg.dispatch_table, **dict.fromkeys(forbidden, _refuse)})
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._leaving: list[memoryview] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is one too, though not by class.
        self._transport = cast(asyncio.Transport, transport)
        _keep_alive(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        begin = 0
        while len(self._received) - begin >= LENGTH_BYTES:
            end = begin + LENGTH_BYTES + int.from_bytes(self._received[begin : begin + LENGTH_BYTES], "big")
            if len(self._received) < end:
                break
            with memoryview(self._received) as view, view[begin + LENGTH_BYTES : end] as frame:
                content = pickle.loads(frame)
            begin = end
            self.take(content)
        del self._received[:begin]

    @abstractmethod
    def take(self, frame: RpcFrame) -> None:
        """Do what a frame asks for."""

    def send(self, frame: RpcFrame) -> None:
        """Let a frame go with whatever else this turn of the loop sends. Errors: what pickling it raises."""
        buffer = io.BytesIO()
        buffer.write(bytes(LENGTH_BYTES))
        pickler = pickle.Pickler(buffer, pickle.HIGHEST_PROTOCOL)
        pickler.dispatch_table = self._reducers
        pickler.dump(frame)
        content = buffer.getbuffer()
        content[:LENGTH_BYTES] = (len(content) - LENGTH_BYTES).to_bytes(LENGTH_BYTES, "big")
        if not self._leaving:
            asyncio.get_running_loop().call_soon(self._leave)
        self._leaving.append(content)

    def _leave(self) -> None:
        frames, self._leaving = self._leaving, []
        if self._transport is not None:
            self._transport.writelines(frames)

    def close(self) -> None:
        """End the connection, and with it every call."""
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.ended.set()


class _Served(Peer):
    """The server's side of a connection. Proof comes first: a peer that does not know the key is cut off, unread."""

    def __init__(self, server: RpcServer) -> None:
        super().__init__(server.forbidden)
        self._server = server
        self._challenge = secrets.token_bytes(CHALLENGE_BYTES)
        self._proved = False
        self._calls: set[asyncio.Task[None]] = set()
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self._transport is not None
        self._transport.write(self._challenge)
        self._late = asyncio.get_running_loop().call_later(PROVE_S, self.close)
        self._server.connections.add(self)

    def data_received(self, data: bytes) -> None:
        if not self._proved:
            self._received += data
            if len(self._received) < PROOF_BYTES:
                return
            proof, data = bytes(self._received[:PROOF_BYTES]), bytes(self._received[PROOF_BYTES:])
            self._received.clear()
            if self._late is not None:
                self._late.cancel()
            if not hmac.compare_digest(proof, _proof(self._server.key, self._challenge)):
                _log.warning("a peer that does not know the key was cut off")
                self.close()
                return
            self._proved = True
        super().data_received(data)

    def take(self, frame: RpcFrame) -> None:
        number, method, arguments = frame
        if method == PING:
            self.send((number, False, None))
            return
        call = asyncio.get_running_loop().create_task(self._answer(number, method, arguments))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _answer(self, number: int | None, method: str, arguments: tuple[Any, ...]) -> None:
        try:
            answer = (number, False, await self._server.call(self, method, arguments))
        except Exception as error:
            answer = (number, True, error)
        if number is None:
            return
        try:
            self.send(answer)
        except Exception as error:
            why = error if isinstance(error, UnpicklableError) else UnpicklableError(f"{method}: {error!r}")
            self.send((number, True, why))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._late is not None:
            self._late.cancel()
        # A call is executed although its caller has disconnected: it may retry, and must find it done.
        self._server.connections.discard(self)


class RpcServer:
    """Answers calls: call(the caller's connection, method, arguments).

    forbidden: types that must not be pickled; an answer with one is UnpicklableError to its caller.
    """

    def __init__(
        self, call: Callable[[Peer, str, tuple[Any, ...]], Awaitable[Any]], forbidden: Iterable[type] = ()
    ) -> None:
        self.call = call
        self.forbidden = tuple(forbidden)
        self.key = secrets.token_bytes(CHALLENGE_BYTES)
        self.connections: set[_Served] = set()
        self._listening: asyncio.Server | None = None

    async def listen(self, host: str) -> Address:
        """Listen at any free port of one address of this machine."""
        self._listening = await asyncio.get_running_loop().create_server(lambda: _Served(self), host, 0)
        return Address(host, self._listening.sockets[0].getsockname()[1], self.key)

    def close(self) -> None:
        """Listen no more and end every connection."""
        if self._listening is not None:
            self._listening.close()
        for connection in list(self.connections):
            connection.close()


class Connection(Peer):
    """A caller's side; `open` makes one. Calls are answered in any order."""

    def __init__(self, key: bytes, forbidden: Iterable[type]) -> None:
        super().__init__(forbidden)
        self._key = key
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count()
        self._silent_looks = 0
        self._look: asyncio.TimerHandle | None = None

    @classmethod
    async def open(cls, address: Address, forbidden: Iterable[type] = ()) -> Connection:
        """Connect and prove that the key is known. Errors: OSError, TimeoutError."""
        connection = cls(address.key, forbidden)
        try:
            async with asyncio.timeout(PROVE_S):
                await asyncio.get_running_loop().create_connection(lambda: connection, address.host, address.port)
                await connection._ready
        except BaseException:
            connection.close()
            raise
        return connection

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method and return its answer. Errors: what the method raises; UnpicklableError; DisconnectedError."""
        if self.ended.is_set():
            raise DisconnectedError("the connection has ended")
        number = next(self._numbers)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.send((number, method, arguments))
        self._waiting[number] = answer
        if self._look is None:
            self._silent_looks = 0
            self._look = asyncio.get_running_loop().call_later(LOOK_S, self._see)
        try:
            return await answer
        finally:
            self._waiting.pop(number, None)

    def tell(self, method: str, *arguments: Any) -> None:
        """Call a method without waiting for an answer or error; the call may be lost with the connection. Errors:
        UnpicklableError.
        """
        if not self.ended.is_set():
            self.send((None, method, arguments))

    def data_received(self, data: bytes) -> None:
        self._silent_looks = 0
        if self._ready.done():
            super().data_received(data)
            return
        self._received += data
        if len(self._received) >= CHALLENGE_BYTES:
            challenge = bytes(self._received[:CHALLENGE_BYTES])
            self._received.clear()
            assert self._transport is not None
            self._transport.write(_proof(self._key, challenge))
            self._ready.set_result(None)

    def take(self, frame: RpcFrame) -> None:
        number, failed, value = frame
        answer = self._waiting.get(number)
        if answer is None or answer.done():
            return
        if failed:
            answer.set_exception(value)
        else:
            answer.set_result(value)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._look is not None:
            self._look.cancel()
        lost = DisconnectedError(f"the connection has ended: {exc or 'closed'}")
        for answer in [self._ready, *self._waiting.values()]:
            if not answer.done():
                answer.set_exception(lost)

    def _see(self) -> None:
        """Ping a silent peer with unanswered calls; end the connection if it does not answer."""
        self._look = None
        if self.ended.is_set() or not self._waiting:
            return
        if self._silent_looks > 1:
            self.close()
            return
        self._silent_looks += 1
        self.send((-1, PING, ()))
        self._look = asyncio.get_running_loop().call_later(LOOK_S, self._see)


class _Reducers(dict[type, Callable[[Any], Any]]):
    """How objects are pickled, by their type: a table of the pickler's own, which asks it once for each object.

    A frozen dataclass with slots, as nearly all that goes this way is, goes as a call of its class: Python's own way
    looks for its fields by name, at each object and on both sides, which takes as long as all else of a frame.
    """

    def __missing__(self, kind: type) -> Callable[[Any], Any]:
        if not _is_its_arguments(kind):
            raise KeyError(kind)
        values = operator.attrgetter(*(field.name for field in fields(kind)))
        one = len(fields(kind)) == 1
        reduce = self[kind] = lambda value: (kind, (values(value),) if one else values(value))
        return reduce


def _is_its_arguments(kind: type) -> bool:
    """Whether a class makes an equal object of the values of its fields, in their order, and does nothing else."""
    if not is_dataclass(kind) or "__slots__" not in vars(kind) or hasattr(kind, "__post_init__"):
        return False
    return bool(fields(kind)) and all(field.init and not field.kw_only for field in fields(kind))


def _proof(key: bytes, challenge: bytes) -> bytes:
    return hmac.digest(key, challenge, DIGEST)


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE.items():
        if (number := getattr(socket, option, None)) is not None:  # not every system has each
            connection.setsockopt(socket.IPPROTO_TCP, number, value)


def _refuse(value: object) -> NoReturn:
    raise UnpicklableError(f"a {type(value).__name__} cannot go by this connection")
