"""Calls over a connection: answers, errors, proof, what may not be sent, and peers that die or fall silent."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import pickle
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Protocol

import msgspec
import pytest

from serve_app.deployments import rpc
from serve_app.deployments.codec import Shapes, UndeclaredError, UnsendableError
from serve_app.deployments.rpc import Address, Connection, DisconnectedError, Peer, RpcServer
from serve_app.deployments.verbs import FaultError, verbs_of
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


async def test_one_way_calls_are_made_and_not_answered() -> None:
    async with served() as (scheduler, _, address):
        connection = await connected(address)
        received = []
        connection.take = received.append  # type: ignore[method-assign, assignment]
        for method in ("echo", "fail", "undeclared"):
            connection.tell(method, *([1, None] if method == "echo" else []))
        connection.tell("hold")
        await asyncio.wait_for(scheduler.held.wait(), PATIENCE_S)
        assert (len(scheduler.callers), received) == (4, [])
        connection.close()
        await connection.ended.wait()
        connection.tell("echo", 1, None)  # nobody is there to hear it, and nobody waits for it


async def test_answers_come_in_any_order() -> None:
    async with served() as (scheduler, _, address):
        connection = await connected(address)
        held = asyncio.create_task(connection.call("hold"))
        assert await connection.call("echo", 1, None) == (1, None)
        scheduler.release.set()
        assert await held == "released"
        connection.close()


async def test_a_peer_that_does_not_know_the_key_is_cut_off() -> None:
    async with served() as (scheduler, _, address):
        connection = await connected(replace(address, key=b"another"))
        with pytest.raises(DisconnectedError):
            await connection.call("echo", 1, None)
        assert scheduler.callers == []


async def test_a_peer_that_proves_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "PROVE_S", 0.05)
    async with served() as (_, _, address):
        reader, writer = await asyncio.open_connection(address.host, address.port)
        assert len(await reader.readexactly(rpc.CHALLENGE_BYTES)) == rpc.CHALLENGE_BYTES
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
        writer.close()


class Evil:
    """What would end the process if its pickle were read."""

    def __reduce__(self) -> Any:
        return os._exit, (1,)


async def sent(address: Address, content: bytes, key: bytes) -> None:
    """Prove a key, send a frame, and return once the server has cut the connection."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    challenge = await reader.readexactly(rpc.CHALLENGE_BYTES)
    proof = hmac.digest(key, challenge, rpc.DIGEST)
    writer.write(proof + len(content).to_bytes(rpc.LENGTH_BYTES, "big") + content)
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
    writer.close()


async def test_nothing_is_read_before_the_proof() -> None:
    async with served() as (scheduler, _, address):
        await sent(address, msgspec.msgpack.encode([1, "echo", [1, None]]), b"another")
        assert scheduler.callers == []


@pytest.mark.parametrize(
    "frame",
    [pickle.dumps(Evil()), pickle.dumps((1, "echo", Evil())), b"", b"\xc1", msgspec.msgpack.encode({"verb": "echo"})],
)
async def test_a_pickle_or_anything_else_that_is_no_call_ends_its_connection(frame: bytes) -> None:
    async with served() as (scheduler, _, address):
        await sent(address, frame, address.key)
        connection = await connected(address)
        assert await connection.call("echo", 1, None) == (1, None)
        assert len(scheduler.callers) == 1
        connection.close()


async def test_calls_that_no_verb_declares_are_refused_and_not_made() -> None:
    async with served() as (scheduler, _, address):
        connection = await connected(address)
        for name, arguments, why in (
            ("drop", [], "there is no verb 'drop'"),
            ("echo", [], "echo: a list is no list of 2"),
            ("echo", ["1", None], "echo: a str is none of what is declared here: int"),
            ("fail", [None], "fail: a list is no list of 0"),
        ):
            answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            connection._waiting[7] = answer
            connection.send((7, name, arguments))
            with pytest.raises(FaultError, match=f"UndeclaredError: {why}"):
                await asyncio.wait_for(answer, PATIENCE_S)
        assert scheduler.callers == []
        connection.close()


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
    monkeypatch.setattr(rpc, "LOOK_S", 0.01)
    async with served() as (scheduler, _, address):
        connection = await connected(address)
        call = asyncio.create_task(connection.call("hold"))
        await scheduler.held.wait()
        await asyncio.sleep(0.2)
        assert not call.done()
        scheduler.release.set()
        assert await call == "released"
        connection.close()


async def test_a_server_that_has_fallen_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "LOOK_S", 0.02)
    silent = socket.create_server(("127.0.0.1", 0))
    silent.setblocking(False)
    opening = asyncio.create_task(connected(Address("127.0.0.1", silent.getsockname()[1], b"key")))
    accepted, _ = await asyncio.get_running_loop().sock_accept(silent)
    accepted.setblocking(False)
    await asyncio.get_running_loop().sock_sendall(accepted, bytes(rpc.CHALLENGE_BYTES))
    connection = await opening
    with pytest.raises(DisconnectedError):
        await asyncio.wait_for(connection.call("echo", 1, None), PATIENCE_S)
    accepted.close()
    silent.close()


async def test_a_caller_that_gives_up_leaves_nothing_behind() -> None:
    async with served() as (_, _, address):
        connection = await connected(address)
        before = len(asyncio.all_tasks())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connection.call("hold"), 0.05)
        # The server goes on with what it was asked for.
        assert len(asyncio.all_tasks()) == before + 1
        assert await connection.call("echo", 1, None) == (1, None)
        connection.close()
