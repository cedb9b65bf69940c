"""Calls over a connection: answers, errors, proof, what may not be sent, and peers that die or fall silent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Protocol

import msgspec
import pytest
import zmq
import zmq.asyncio

from serve_app.deployments import rpc
from serve_app.deployments.codec import Shapes, UndeclaredError, UnsendableError, decode
from serve_app.deployments.rpc import Address, Connection, DisconnectedError, Peer, RpcServer
from serve_app.deployments.verbs import verbs_of
from serve_app.errors import QueueFullError

PATIENCE_S = 60.0


class Secret:
    """What no frame may hold."""


class Verbs(Protocol):
    """What the scheduler of these tests is called by."""

    async def echo(self, number: int, data: Any = None) -> tuple[int, Any]: ...

    async def fail(self) -> None: ...

    async def secret(self) -> Any: ...

    async def undeclared(self) -> int: ...

    async def hold(self) -> str: ...


VERBS = verbs_of(Verbs, Shapes())


async def connected(address: Address) -> Connection:
    return await Connection.open(address, VERBS, [Secret])


class Scheduler:
    """Answers calls by its methods; `hold` waits until it is let go."""

    def __init__(self) -> None:
        self.callers: list[Peer] = []
        self.held = asyncio.Event()
        self.release = asyncio.Event()

    async def __call__(self, caller: Peer, method: str, arguments: tuple[Any, ...]) -> Any:
        self.callers.append(caller)
        match method:
            case "echo":
                return arguments
            case "fail":
                raise QueueFullError("full", retry_after_s=7)
            case "secret":
                return [Secret()]
            case "undeclared":
                return "a text"
            case _:
                self.held.set()
                await self.release.wait()
                return "released"


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[tuple[Scheduler, RpcServer, Address]]:
    scheduler = Scheduler()
    server = RpcServer(scheduler, VERBS, [Secret])
    address = await server.listen("127.0.0.1")
    try:
        yield scheduler, server, address
    finally:
        server.close()


@contextlib.asynccontextmanager
async def raw(address: Address) -> AsyncIterator[Any]:
    """Give a socket that is let in, by which anything can be sent."""
    with zmq.asyncio.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger, socket.curve_serverkey = 0, address.server
        socket.curve_publickey, socket.curve_secretkey = zmq.curve_public(address.key), address.key
        socket.connect(f"tcp://{address.host}:{address.port}")
        yield socket


async def test_answers_and_errors_come_back_as_they_are() -> None:
    async with served() as (_, _, address):
        connection = await connected(address)
        large = bytes(5_000_000)
        answers = await asyncio.gather(*(connection.call("echo", i, large[: i * 10_000]) for i in range(100)))
        assert answers == [(i, large[: i * 10_000]) for i in range(100)]
        assert await connection.call("echo", 1, large) == (1, large)
        with pytest.raises(QueueFullError, match="full") as refused:
            await connection.call("fail")
        assert refused.value.retry_after_s == 7
        connection.close()


async def test_every_one_of_many_calls_is_answered_however_they_and_their_answers_meet() -> None:
    async with served() as (_, _, address):
        connection = await connected(address)

        async def client(first: int) -> None:
            for number in range(first, first + 150):
                assert await connection.call("echo", number, None) == (number, None)

        await asyncio.gather(*(client(first) for first in range(0, 16_000, 1000)))
        connection.close()


async def test_one_way_calls_are_made_and_not_answered() -> None:
    async with served() as (scheduler, _, address), raw(address) as socket:
        for name, arguments in (("fail", []), ("undeclared", []), ("hold", [])):
            await socket.send(msgspec.msgpack.encode([None, name, arguments]))
        await socket.send(msgspec.msgpack.encode([1, "echo", [1, None]]))
        assert decode(await asyncio.wait_for(socket.recv(), PATIENCE_S)) == [1, rpc.ANSWERED, [1, None]]
        assert len(scheduler.callers) == 4


async def test_a_one_way_call_of_an_ended_connection_is_lost() -> None:
    async with served() as (scheduler, _, address):
        connection = await connected(address)
        connection.tell("hold")
        await asyncio.wait_for(scheduler.held.wait(), PATIENCE_S)
        connection.close()
        connection.tell("hold")
        assert len(scheduler.callers) == 1


async def test_answers_come_in_any_order() -> None:
    async with served() as (scheduler, _, address):
        connection = await connected(address)
        held = asyncio.create_task(connection.call("hold"))
        assert await connection.call("echo", 1, None) == (1, None)
        scheduler.release.set()
        assert await held == "released"
        connection.close()


async def test_a_caller_without_the_callers_key_is_not_connected() -> None:
    async with served() as (scheduler, _, address):
        other = zmq.curve_keypair()
        for wrong in (replace(address, key=other[1]), replace(address, server=other[0])):
            with pytest.raises((DisconnectedError, TimeoutError)):
                await connected(wrong)
        assert scheduler.callers == []


@pytest.mark.parametrize("kind", ["plain", "null", "open"])
async def test_nothing_is_read_of_a_peer_that_proves_nothing(kind: str) -> None:
    async with served() as (scheduler, _, address):
        call = msgspec.msgpack.encode([None, "echo", [1, None]])
        if kind == "open":
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(call)
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), PATIENCE_S)
            writer.close()
        else:
            with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
                socket.linger = 0
                if kind == "plain":
                    socket.plain_username, socket.plain_password = b"me", address.key
                socket.connect(f"tcp://{address.host}:{address.port}")
                socket.send(call)
                await asyncio.sleep(0.2)
        connection = await connected(address)
        assert await connection.call("echo", 1, None) == (1, None)
        assert len(scheduler.callers) == 1
        connection.close()


class Evil:
    """What would end the process if its pickle were read."""

    def __reduce__(self) -> Any:
        return os._exit, (1,)


@pytest.mark.parametrize(
    "frame",
    [pickle.dumps(Evil()), pickle.dumps((1, "echo", Evil())), b"", b"\xc1", msgspec.msgpack.encode({"verb": "echo"})],
)
async def test_a_pickle_or_anything_else_that_is_no_call_is_dropped(frame: bytes) -> None:
    async with served() as (scheduler, _, address), raw(address) as socket:
        await socket.send(frame)
        await socket.send(msgspec.msgpack.encode([1, "echo", [1, None]]))
        assert decode(await asyncio.wait_for(socket.recv(), PATIENCE_S)) == [1, rpc.ANSWERED, [1, None]]
        assert len(scheduler.callers) == 1


@pytest.mark.parametrize(
    ("name", "arguments", "why"),
    [
        ("drop", [], "there is no verb 'drop'"),
        ("echo", [], "echo: a list is no list of 2"),
        ("echo", ["1", None], "echo: a str is none of what is declared here: int"),
        ("fail", [None], "fail: a list is no list of 0"),
    ],
)
async def test_a_call_that_no_verb_declares_is_refused_and_not_made(name: str, arguments: list[Any], why: str) -> None:
    async with served() as (scheduler, _, address), raw(address) as socket:
        await socket.send(msgspec.msgpack.encode([1, name, arguments]))
        refused = [1, rpc.FAILED, ["UndeclaredError", why, None]]
        assert decode(await asyncio.wait_for(socket.recv(), PATIENCE_S)) == refused
        assert scheduler.callers == []


async def test_what_must_not_be_sent_goes_neither_way() -> None:
    async with served() as (scheduler, _, address):
        connection = await connected(address)
        with pytest.raises(UnsendableError, match="Secret"):
            await connection.call("echo", 1, {"deep": [Secret()]})
        assert scheduler.callers == []
        with pytest.raises(UnsendableError, match="Secret"):
            await connection.call("secret")
        with pytest.raises(UndeclaredError, match="a str is none of what is declared here: int"):
            await connection.call("undeclared")
        assert await connection.call("echo", 1, None) == (1, None)
        connection.close()


async def test_a_server_that_ends_ends_every_call() -> None:
    async with served() as (scheduler, server, address):
        connection = await connected(address)
        calls = [asyncio.create_task(connection.call("hold")) for _ in range(3)]
        await scheduler.held.wait()
        server.close()
        for call in calls:
            with pytest.raises(DisconnectedError):
                await asyncio.wait_for(call, PATIENCE_S)
        assert connection.ended.is_set()
        with pytest.raises(DisconnectedError):
            await connection.call("echo", 1, None)


async def test_the_server_notices_that_a_caller_has_ended() -> None:
    async with served() as (scheduler, _, address):
        connection = await connected(address)
        await connection.call("echo", 1, None)
        connection.close()
        await asyncio.wait_for(scheduler.callers[0].ended.wait(), PATIENCE_S)


async def test_a_slow_call_is_awaited_while_its_server_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "LOOK_S", 0.5)
    pings = asyncio.Semaphore(0)

    def counted(frame: bytes) -> Any:
        found = decode(frame)
        if found[1] == rpc.PING:
            pings.release()
        return found

    monkeypatch.setattr(rpc, "decode", counted)
    async with served() as (scheduler, _, address):
        connection = await connected(address)
        call = asyncio.create_task(connection.call("hold"))
        await asyncio.wait_for(scheduler.held.wait(), PATIENCE_S)
        # Two pings that nobody answered would end the connection at the third.
        for _ in range(4):
            await asyncio.wait_for(pings.acquire(), PATIENCE_S)
        assert not call.done()
        scheduler.release.set()
        assert await call == "released"
        connection.close()


async def test_a_server_that_has_fallen_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "LOOK_S", 0.02)
    monkeypatch.setattr(RpcServer, "_take", lambda server, message: None)
    async with served() as (_, _, address):
        connection = await connected(address)
        with pytest.raises(DisconnectedError, match="silent"):
            await asyncio.wait_for(connection.call("echo", 1, None), PATIENCE_S)


async def test_a_server_that_is_not_there_is_not_connected_to() -> None:
    async with served() as (_, _, address):
        pass
    with pytest.raises(DisconnectedError):
        await connected(address)


async def test_a_caller_that_gives_up_leaves_nothing_behind() -> None:
    async with served() as (scheduler, _, address):
        connection = await connected(address)
        before = len(asyncio.all_tasks())
        call = asyncio.create_task(connection.call("hold"))
        await asyncio.wait_for(scheduler.held.wait(), PATIENCE_S)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call, 0.05)
        # The server goes on with what it was asked for.
        assert len(asyncio.all_tasks()) == before + 1
        assert await connection.call("echo", 1, None) == (1, None)
        connection.close()


async def test_a_call_right_after_the_end_of_a_connection_says_so() -> None:
    async with served() as (_, server, address):
        connection = await connected(address)
        server.close()
        time.sleep(0.1)  # the socket has read it, and this loop has not
        with pytest.raises(DisconnectedError):
            await connection.call("echo", 1, None)
        connection.tell("echo", 1, None)
