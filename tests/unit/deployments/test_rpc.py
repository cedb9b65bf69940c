"""Calls over a connection: answers, errors, proof, what may not be pickled, and peers that die or fall silent."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from serve_app.deployments import rpc
from serve_app.deployments.rpc import Address, Connection, DisconnectedError, Peer, RpcServer, UnpicklableError
from serve_app.errors import QueueFullError
from serve_app.events import Event

PATIENCE_S = 60.0


class Secret:
    """What no frame may hold."""


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
            case "unpicklable":
                return lambda: None
            case _:
                self.held.set()
                await self.release.wait()
                return "released"


@dataclass(frozen=True, slots=True)
class One:
    """One field, whose value is a tuple."""

    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Named:
    """Fields that no call without names can set."""

    first: int
    second: int = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class Derived(One):
    """Fields of its own and of another class."""

    own: str = "none"


@dataclass(slots=True)
class Counted:
    """A field that its class sets by itself."""

    values: list[int]
    count: int = field(init=False)

    def __post_init__(self) -> None:
        self.count = len(self.values)


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[tuple[Scheduler, RpcServer, Address]]:
    scheduler = Scheduler()
    server = RpcServer(scheduler, [Secret])
    address = await server.listen("127.0.0.1")
    try:
        yield scheduler, server, address
    finally:
        server.close()


async def test_answers_and_errors_come_back_as_they_are() -> None:
    async with served() as (_, _, address):
        connection = await Connection.open(address)
        large = bytes(5_000_000)
        answers = await asyncio.gather(*(connection.call("echo", i, large[: i * 10_000]) for i in range(100)))
        assert answers == [(i, large[: i * 10_000]) for i in range(100)]
        assert await connection.call("echo", large) == (large,)
        with pytest.raises(QueueFullError, match="full") as refused:
            await connection.call("fail")
        assert refused.value.retry_after_s == 7
        connection.close()


async def test_one_way_calls_are_made_and_not_answered() -> None:
    async with served() as (scheduler, _, address):
        connection = await Connection.open(address)
        received = []
        connection.take = received.append  # type: ignore[method-assign, assignment]
        for method in ("echo", "fail", "unpicklable"):
            connection.tell(method)
        connection.tell("hold")
        await asyncio.wait_for(scheduler.held.wait(), PATIENCE_S)
        assert (len(scheduler.callers), received) == (4, [])
        connection.close()
        await connection.ended.wait()
        connection.tell("echo")  # nobody is there to hear it, and nobody waits for it


async def test_answers_come_in_any_order() -> None:
    async with served() as (scheduler, _, address):
        connection = await Connection.open(address)
        held = asyncio.create_task(connection.call("hold"))
        assert await connection.call("echo", 1) == (1,)
        scheduler.release.set()
        assert await held == "released"
        connection.close()


async def test_a_peer_that_does_not_know_the_key_is_cut_off() -> None:
    async with served() as (scheduler, _, address):
        connection = await Connection.open(replace(address, key=b"another"))
        with pytest.raises(DisconnectedError):
            await connection.call("echo", 1)
        assert scheduler.callers == []


async def test_a_peer_that_proves_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "PROVE_S", 0.05)
    async with served() as (_, _, address):
        reader, writer = await asyncio.open_connection(address.host, address.port)
        assert len(await reader.readexactly(rpc.CHALLENGE_BYTES)) == rpc.CHALLENGE_BYTES
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
        writer.close()


async def test_nothing_is_unpickled_before_the_proof() -> None:
    async with served() as (scheduler, _, address):
        reader, writer = await asyncio.open_connection(address.host, address.port)
        await reader.readexactly(rpc.CHALLENGE_BYTES)
        # What would end the process if it were read: a pickle that calls os._exit.
        evil = b"cos\n_exit\n(I1\ntR."
        writer.write(bytes(rpc.PROOF_BYTES) + len(evil).to_bytes(rpc.LENGTH_BYTES, "big") + evil)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
        writer.close()
        assert scheduler.callers == []


async def test_what_must_not_be_pickled_goes_neither_way() -> None:
    async with served() as (scheduler, _, address):
        connection = await Connection.open(address, [Secret])
        with pytest.raises(UnpicklableError, match="Secret"):
            await connection.call("echo", {"deep": [Secret()]})
        assert scheduler.callers == []
        with pytest.raises(UnpicklableError, match="Secret"):
            await connection.call("secret")
        with pytest.raises(UnpicklableError, match="unpicklable"):
            await connection.call("unpicklable")
        assert await connection.call("echo", 1) == (1,)
        connection.close()


async def test_a_server_that_ends_ends_every_call() -> None:
    async with served() as (scheduler, server, address):
        connection = await Connection.open(address)
        calls = [asyncio.create_task(connection.call("hold")) for _ in range(3)]
        await scheduler.held.wait()
        server.close()
        for call in calls:
            with pytest.raises(DisconnectedError):
                await asyncio.wait_for(call, PATIENCE_S)
        assert connection.ended.is_set()
        with pytest.raises(DisconnectedError):
            await connection.call("echo", 1)


async def test_the_server_notices_that_a_caller_has_ended() -> None:
    async with served() as (scheduler, _, address):
        connection = await Connection.open(address)
        await connection.call("echo")
        connection.close()
        await asyncio.wait_for(scheduler.callers[0].ended.wait(), PATIENCE_S)


async def test_a_slow_call_is_awaited_while_its_server_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc, "LOOK_S", 0.01)
    async with served() as (scheduler, _, address):
        connection = await Connection.open(address)
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
    opening = asyncio.create_task(Connection.open(Address("127.0.0.1", silent.getsockname()[1], b"key")))
    accepted, _ = await asyncio.get_running_loop().sock_accept(silent)
    accepted.setblocking(False)
    await asyncio.get_running_loop().sock_sendall(accepted, bytes(rpc.CHALLENGE_BYTES))
    connection = await opening
    with pytest.raises(DisconnectedError):
        await asyncio.wait_for(connection.call("echo"), PATIENCE_S)
    accepted.close()
    silent.close()


async def test_a_caller_that_gives_up_leaves_nothing_behind() -> None:
    async with served() as (_, _, address):
        connection = await Connection.open(address)
        before = len(asyncio.all_tasks())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connection.call("hold"), 0.05)
        # The server goes on with what it was asked for.
        assert len(asyncio.all_tasks()) == before + 1
        assert await connection.call("echo", 1) == (1,)
        connection.close()


async def test_dataclasses_of_every_kind_arrive_as_they_were_sent() -> None:
    async with served() as (_, _, address):
        connection = await Connection.open(address, [Secret])
        grown = Counted([1])
        grown.values.append(2)
        sent = (One((1, 2)), Named(1, second=2), Derived((), "it"), Event("job", 3, "executing", 1.5, {"node": "1"}))
        assert await connection.call("echo", *sent, grown) == (*sent, grown)
        assert (await connection.call("echo", sent[-1]))[0].bytes == sent[-1].bytes
        connection.close()


async def test_what_must_not_be_sent_is_found_inside_a_dataclass() -> None:
    async with served() as (_, _, address):
        connection = await Connection.open(address, [Secret])
        with pytest.raises(UnpicklableError):
            await connection.call("echo", One((Secret(),)))  # type: ignore[arg-type]
        connection.close()
