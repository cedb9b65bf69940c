"""Calls from one process to another over a TCP connection: a number, a verb and its arguments in a frame.

What the scheduler is asked, by every ingress and replica, goes this way: a call of Ray's costs several times as much on
either side. Frames of one turn of the event loop leave in one write. Knows no Ray and no scheduler.

Frames are MessagePack of declared types (`verbs.py`, `codec.py`), and nothing is read of a peer before it has proved
that it knows the server's key (a challenge answered by HMAC, RFC 2104). The traffic itself is as open as Ray's own.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import itertools
import secrets
import socket
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from serve_app import log
from serve_app.deployments.codec import Encoder, UndeclaredError, UnsendableError, decode
from serve_app.deployments.verbs import Verb, pack_error, unpack_error

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
"""The verb of pings."""


class DisconnectedError(ConnectionError):
    """The connection has ended before the call was answered; whether the call was carried out is not known."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens, and what its callers must know."""

    host: str
    port: int
    key: bytes


ANSWERED, FAILED, UNSENDABLE = 0, 1, 2
"""The outcomes of a call: its answer; its error; an answer that this connection must not carry.

A frame of a caller's is [number, verb, packed arguments], with None for the number of a call that is not answered; one
of a server's [number, outcome, packed answer or error].
"""


class Peer(asyncio.Protocol, ABC):
    """One side of a connection: frames in and out. forbidden: types that no frame may hold. ended: once it has."""

    def __init__(self, forbidden: Iterable[type]) -> None:
        self.ended = asyncio.Event()
        self._encode = Encoder(forbidden)
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._leaving: list[bytes] = []

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
            frame = bytes(self._received[begin + LENGTH_BYTES : end])
            begin = end
            try:
                self.take(decode(frame))
            except UndeclaredError as error:
                _log.warning("a peer that sent what is no frame was cut off: %s", error)
                self.close()
                return
        del self._received[:begin]

    @abstractmethod
    def take(self, frame: Any) -> None:
        """Do what a frame asks for. Errors: UndeclaredError for what is none."""

    def send(self, frame: tuple[Any, ...]) -> None:
        """Let a frame go with whatever else this turn of the loop sends. Errors: UnsendableError."""
        content = self._encode(frame)
        if not self._leaving:
            asyncio.get_running_loop().call_soon(self._leave)
        self._leaving += (len(content).to_bytes(LENGTH_BYTES, "big"), content)

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

    def take(self, frame: Any) -> None:
        match frame:
            case [int(number), str(name), []] if name == PING:
                self.send((number, ANSWERED, None))
            case [int() | None as number, str(name), list(packed)]:
                call = asyncio.get_running_loop().create_task(self._answer(number, name, packed))
                self._calls.add(call)
                call.add_done_callback(self._calls.discard)
            case _:
                raise UndeclaredError("a call is [number, verb, arguments]")

    async def _answer(self, number: int | None, name: str, packed: list[Any]) -> None:
        try:
            answer = ANSWERED, await self._answered(name, packed)
        except Exception as error:
            answer = FAILED, pack_error(error)
        if number is None:
            return
        try:
            self.send((number, *answer))
        except UnsendableError as error:
            self.send((number, UNSENDABLE, str(error)))
        except Exception as error:
            self.send((number, FAILED, pack_error(error)))

    async def _answered(self, name: str, packed: list[Any]) -> Any:
        """Return the packed answer to a call. Errors: the verb's; UndeclaredError."""
        if (verb := self._server.verbs.get(name)) is None:
            raise UndeclaredError(f"there is no verb {name!r}")
        arguments = verb.unpack(packed)
        return verb.pack_answer(arguments, await self._server.call(self, name, arguments))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._late is not None:
            self._late.cancel()
        # A call is executed although its caller has disconnected: it may retry, and must find it done.
        self._server.connections.discard(self)


class RpcServer:
    """Answers calls of verbs: call(the caller's connection, verb, arguments).

    forbidden: types that must not be sent; an answer with one is UnsendableError to its caller.
    """

    def __init__(
        self,
        call: Callable[[Peer, str, tuple[Any, ...]], Awaitable[Any]],
        verbs: Mapping[str, Verb],
        forbidden: Iterable[type] = (),
    ) -> None:
        self.call = call
        self.verbs = verbs
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

    def __init__(self, key: bytes, verbs: Mapping[str, Verb], forbidden: Iterable[type]) -> None:
        super().__init__(forbidden)
        self._key = key
        self._verbs = verbs
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count()
        self._silent_looks = 0
        self._look: asyncio.TimerHandle | None = None

    @classmethod
    async def open(cls, address: Address, verbs: Mapping[str, Verb], forbidden: Iterable[type] = ()) -> Connection:
        """Connect and prove that the key is known. Errors: OSError, TimeoutError."""
        connection = cls(address.key, verbs, forbidden)
        try:
            async with asyncio.timeout(PROVE_S):
                await asyncio.get_running_loop().create_connection(lambda: connection, address.host, address.port)
                await connection._ready
        except BaseException:
            connection.close()
            raise
        return connection

    async def call(self, name: str, *arguments: Any) -> Any:
        """Call a verb and return its answer. Errors: its own; UndeclaredError; UnsendableError; DisconnectedError."""
        if self.ended.is_set():
            raise DisconnectedError("the connection has ended")
        number, verb = next(self._numbers), self._verbs[name]
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.send((number, name, verb.pack(arguments)))
        self._waiting[number] = answer
        if self._look is None:
            self._silent_looks = 0
            self._look = asyncio.get_running_loop().call_later(LOOK_S, self._see)
        try:
            return verb.unpack_answer(arguments, await answer)
        finally:
            self._waiting.pop(number, None)

    def tell(self, name: str, *arguments: Any) -> None:
        """Call a verb without waiting for an answer or error; the call may be lost with the connection. Errors:
        UndeclaredError, UnsendableError.
        """
        if not self.ended.is_set():
            self.send((None, name, self._verbs[name].pack(arguments)))

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

    def take(self, frame: Any) -> None:
        match frame:
            case [int(number), int(outcome), content]:
                answer = self._waiting.get(number)
            case _:
                raise UndeclaredError("an answer is [number, outcome, content]")
        if answer is None or answer.done():
            return
        if outcome == ANSWERED:
            answer.set_result(content)
        else:
            answer.set_exception(UnsendableError(content) if outcome == UNSENDABLE else unpack_error(content))

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
        self.send((-1, PING, []))
        self._look = asyncio.get_running_loop().call_later(LOOK_S, self._see)


def _proof(key: bytes, challenge: bytes) -> bytes:
    return hmac.digest(key, challenge, DIGEST)


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE.items():
        if (number := getattr(socket, option, None)) is not None:  # not every system has each
            connection.setsockopt(socket.IPPROTO_TCP, number, value)
