"""Calls from one process to another over ZeroMQ: a number, a verb and its arguments in a frame, encrypted by CURVE.

What the scheduler is asked, by every ingress and replica, goes this way: a call of Ray's costs several times as much on
either side. Knows no Ray and no scheduler. Frames are MessagePack of declared types (`verbs.py`, `codec.py`). Only a
caller that has the server's key for callers comes through the handshake (CurveZMQ, ZeroMQ's RFC 26).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import zmq
import zmq.auth.asyncio
from zmq.utils.monitor import parse_monitor_message

from serve_app import log
from serve_app.deployments.codec import Encoder, UndeclaredError, UnsendableError, decode
from serve_app.deployments.verbs import Verb, pack_error, unpack_error

_log = log.get("deployments.rpc")

PROVE_S = 5.0
"""The timeout of a connection's handshake."""
LOOK_S = 3.0
"""The interval of pings while calls are unanswered. A server that is silent for two intervals is dead."""
NOTICE_S = (0.05, 1.0)
"""When a server looks which callers are gone, after the end of a connection: their queues may be there a while."""
OPTIONS: Mapping[int, int] = {
    zmq.LINGER: 0,
    zmq.SNDHWM: 0,
    zmq.RCVHWM: 0,
    # A host that is cut off closes no connection: seconds until the kernel asks, between asking, and how often.
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 10,
    zmq.TCP_KEEPALIVE_INTVL: 5,
    zmq.TCP_KEEPALIVE_CNT: 3,
}
TURN = 100
"""The most frames that are read in one turn of the event loop."""
PING = ""
"""The verb of pings."""
ANSWERED, FAILED, UNSENDABLE = 0, 1, 2
"""The outcomes of a call: its answer; its error; an answer that this connection must not carry.

A frame of a caller's is [number, verb, packed arguments], with None for the number of a call that is not answered; one
of a server's [number, outcome, packed answer or error], or empty, which says only that it is there.
"""


class DisconnectedError(ConnectionError):
    """The connection has ended before the call was answered; whether the call was carried out is not known."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens, its public key, and the secret key of its callers."""

    host: str
    port: int
    server: bytes
    key: bytes


class Pipe:
    """A socket of ZeroMQ's in the event loop. received: called with each message."""

    def __init__(self, socket: zmq.Socket[bytes], received: Callable[[list[bytes]], None]) -> None:
        self._socket = socket
        self._received = received
        self._loop = asyncio.get_running_loop()
        self._reading: asyncio.Handle | None = None
        self._descriptor = socket.FD
        self._loop.add_reader(self._descriptor, self._read)
        self._read_soon()

    def send(self, *frames: bytes) -> None:
        """Send a message. Errors: zmq.ZMQError if its receiver is gone."""
        self._socket.send_multipart(frames, zmq.NOBLOCK)
        # The descriptor says once that there is something to do, which sending may have done away with.
        self._read_soon()

    def close(self) -> None:
        """Close the socket, once."""
        if not self._socket.closed:
            self._loop.remove_reader(self._descriptor)
            self._socket.close()

    def _read_soon(self) -> None:
        if self._reading is None:
            self._reading = self._loop.call_soon(self._read)

    def _read(self) -> None:
        self._reading = None
        with contextlib.suppress(zmq.Again):
            for _ in range(TURN):
                if self._socket.closed:
                    return
                message = self._socket.recv_multipart(zmq.NOBLOCK)
                try:
                    self._received(message)
                except BaseException:
                    self._read_soon()
                    raise
            self._read_soon()


class Peer:
    """A caller as its server sees it. ended: once its connection has."""

    def __init__(self, identity: bytes) -> None:
        self.identity = identity
        self.ended = asyncio.Event()


class _Callers:
    """Lets those through the handshake who have the callers' key."""

    def __init__(self, public: bytes) -> None:
        self._public = public

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a public key, in Z85, is theirs."""
        return key == self._public


class RpcServer:
    """Answers calls of verbs: call(the caller, verb, arguments).

    forbidden: types that must not be sent; an answer with one is UnsendableError to its caller.
    """

    def __init__(
        self,
        call: Callable[[Peer, str, tuple[Any, ...]], Awaitable[Any]],
        verbs: Mapping[str, Verb],
        forbidden: Iterable[type] = (),
    ) -> None:
        self._call = call
        self._verbs = verbs
        self._encode = Encoder(forbidden)
        self._peers: dict[bytes, Peer] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._pipe: Pipe | None = None

    async def listen(self, host: str) -> Address:
        """Listen at any free port of one address of this machine."""
        self._context = zmq.Context()
        server, secret = zmq.curve_keypair()
        callers, key = zmq.curve_keypair()
        self._authenticator = zmq.auth.asyncio.AsyncioAuthenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback("*", _Callers(callers))
        socket = _socket(self._context, zmq.ROUTER, {zmq.ROUTER_MANDATORY: 1, zmq.CURVE_SERVER: 1})
        socket.curve_secretkey = secret
        self._monitor = Pipe(socket.get_monitor_socket(zmq.Event.DISCONNECTED), self._see)
        self._pipe = Pipe(socket, self._take)
        socket.bind(f"tcp://{host}:*")
        port = int(socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        return Address(host, port, server, key)

    def close(self) -> None:
        """Listen no more and end every connection."""
        if self._pipe is not None:
            self._monitor.close()
            self._pipe.close()
            self._authenticator.stop()
            self._context.destroy(0)
            self._pipe = None
            for peer in self._peers.values():
                peer.ended.set()

    def _see(self, message: list[bytes]) -> None:
        """Look for callers that are gone, after the end of a connection, which ZeroMQ gives no caller's name."""
        for delay_s in NOTICE_S:
            asyncio.get_running_loop().call_later(delay_s, self._notice)

    def _notice(self) -> None:
        for peer in list(self._peers.values()):
            self._send(peer, b"")

    def _take(self, message: list[bytes]) -> None:
        identity, *content = message
        peer = self._peers.get(identity)
        if peer is None:
            peer = self._peers[identity] = Peer(identity)
        try:
            match decode(b"".join(content)):
                case [int(number), str(name), []] if name == PING:
                    self._send(peer, self._encode((number, ANSWERED, None)))
                case [int() | None as number, str(name), list(packed)]:
                    call = asyncio.get_running_loop().create_task(self._answer(peer, number, name, packed))
                    self._calls.add(call)
                    call.add_done_callback(self._calls.discard)
                case _:
                    raise UndeclaredError("a call is [number, verb, arguments]")
        except UndeclaredError as error:
            _log.warning("what is no call was dropped: %s", error)

    async def _answer(self, peer: Peer, number: int | None, name: str, packed: list[Any]) -> None:
        try:
            answer = ANSWERED, await self._answered(peer, name, packed)
        except Exception as error:
            answer = FAILED, pack_error(error)
        if number is None:
            return
        try:
            content = self._encode((number, *answer))
        except UnsendableError as error:
            content = self._encode((number, UNSENDABLE, str(error)))
        except Exception as error:
            content = self._encode((number, FAILED, pack_error(error)))
        self._send(peer, content)

    async def _answered(self, peer: Peer, name: str, packed: list[Any]) -> Any:
        """Return the packed answer to a call. Errors: the verb's; UndeclaredError."""
        if (verb := self._verbs.get(name)) is None:
            raise UndeclaredError(f"there is no verb {name!r}")
        arguments = verb.unpack(packed)
        return verb.pack_answer(arguments, await self._call(peer, name, arguments))

    def _send(self, peer: Peer, content: bytes) -> None:
        if self._pipe is None:
            return
        try:
            self._pipe.send(peer.identity, content)
        except zmq.ZMQError:
            # A call is executed although its caller has disconnected: it may retry, and must find it done.
            self._peers.pop(peer.identity, None)
            peer.ended.set()


class Connection:
    """A caller's side; `open` makes one. Calls are answered in any order. ended: once the connection has."""

    def __init__(self, address: Address, verbs: Mapping[str, Verb], forbidden: Iterable[type]) -> None:
        self.ended = asyncio.Event()
        self._verbs = verbs
        self._encode = Encoder(forbidden)
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count()
        self._silent_looks = 0
        self._look: asyncio.TimerHandle | None = None
        socket = _socket(zmq.Context.instance(), zmq.DEALER, {zmq.RECONNECT_IVL: -1})
        socket.curve_serverkey = address.server
        socket.curve_publickey, socket.curve_secretkey = zmq.curve_public(address.key), address.key
        self._pipe = Pipe(socket, self._take)
        self._monitor = Pipe(socket.get_monitor_socket(_OPENED | _ENDED), self._see)
        socket.connect(f"tcp://{address.host}:{address.port}")
        self._socket = socket

    @classmethod
    async def open(cls, address: Address, verbs: Mapping[str, Verb], forbidden: Iterable[type] = ()) -> Connection:
        """Connect to a server by its key. Errors: OSError, TimeoutError."""
        connection = cls(address, verbs, forbidden)
        try:
            async with asyncio.timeout(PROVE_S):
                await connection._ready
        except BaseException:
            connection.close()
            raise
        return connection

    async def call(self, name: str, *arguments: Any) -> Any:
        """Call a verb and return its answer. Errors: its own; UndeclaredError; UnsendableError; DisconnectedError."""
        number, verb = next(self._numbers), self._verbs[name]
        self._send(number, name, verb.pack(arguments))
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        if self._look is None:
            self._silent_looks = 0
            self._look = asyncio.get_running_loop().call_later(LOOK_S, self._ping)
        try:
            return verb.unpack_answer(arguments, await answer)
        finally:
            self._waiting.pop(number, None)

    def tell(self, name: str, *arguments: Any) -> None:
        """Call a verb without waiting for an answer or error; the call may be lost with the connection. Errors:
        UndeclaredError, UnsendableError.
        """
        with contextlib.suppress(DisconnectedError):
            self._send(None, name, self._verbs[name].pack(arguments))

    def _send(self, number: int | None, name: str, packed: Sequence[Any]) -> None:
        if self.ended.is_set():
            raise DisconnectedError("the connection has ended")
        content = self._encode((number, name, packed))
        try:
            self._pipe.send(content)
        except zmq.ZMQError as error:  # it has ended, and nothing has said so yet
            self.close(str(error))
            raise DisconnectedError(f"the connection has ended: {error}") from error

    def close(self, why: str = "closed") -> None:
        """End the connection, and with it every call."""
        if self.ended.is_set():
            return
        self.ended.set()
        self._socket.disable_monitor()
        self._monitor.close()
        self._pipe.close()
        if self._look is not None:
            self._look.cancel()
        for answer in [self._ready, *self._waiting.values()]:
            if not answer.done():
                answer.set_exception(DisconnectedError(f"the connection has ended: {why}"))

    def _take(self, message: list[bytes]) -> None:
        self._silent_looks = 0
        if not message[0]:
            return
        try:
            match decode(message[0]):
                case [int(number), int(outcome), content]:
                    self._answered(number, outcome, content)
                case _:
                    raise UndeclaredError("an answer is [number, outcome, content]")
        except UndeclaredError as error:
            self.close(str(error))

    def _answered(self, number: int, outcome: int, content: Any) -> None:
        answer = self._waiting.get(number)
        if answer is None or answer.done():
            return
        if outcome == ANSWERED:
            answer.set_result(content)
        else:
            answer.set_exception(UnsendableError(content) if outcome == UNSENDABLE else unpack_error(content))

    def _see(self, message: list[bytes]) -> None:
        """Note what has happened to the socket."""
        event = zmq.Event(parse_monitor_message(message)["event"])
        if event & _OPENED:
            if not self._ready.done():
                self._ready.set_result(None)
        else:
            self.close(str(event.name).lower())

    def _ping(self) -> None:
        """Ping a silent server with unanswered calls; end the connection if it does not answer."""
        self._look = None
        if self.ended.is_set() or not self._waiting:
            return
        if self._silent_looks > 1:
            self.close("silent")
            return
        self._silent_looks += 1
        with contextlib.suppress(DisconnectedError):
            self._send(-1, PING, [])
            self._look = asyncio.get_running_loop().call_later(LOOK_S, self._ping)


_OPENED = zmq.Event.HANDSHAKE_SUCCEEDED
_ENDED = (
    zmq.Event.DISCONNECTED
    | zmq.Event.CLOSED
    | zmq.Event.HANDSHAKE_FAILED_AUTH
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
)


def _socket(context: zmq.Context[Any], kind: int, options: Mapping[int, int]) -> Any:
    socket = context.socket(kind)
    for option, value in (*OPTIONS.items(), *options.items()):
        socket.setsockopt(option, value)
    return socket
