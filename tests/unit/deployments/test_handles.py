"""Calls to the scheduler: by its connection, by Ray where they hold what only Ray may carry, again where it died."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import ray

from serve_app.deployments import handles, replica
from serve_app.deployments.handles import SchedulerHandle
from serve_app.deployments.rpc import Address, Peer, RpcServer
from serve_app.deployments.verbs import VERBS
from serve_app.errors import NotReadyError
from serve_app.graph.plan import TaskId
from serve_app.graph.spec import NodeSpec
from serve_app.scheduler.protocol.client import QueueCount
from serve_app.scheduler.protocol.messages import Deliver, Exported, NodePreviewed

PATIENCE_S = 60.0


class Reference:
    """Stands for an object reference of Ray's."""


class Method:
    """A method of an actor, called as Ray has it."""

    def __init__(self, function: Callable[..., Awaitable[Any]]) -> None:
        self._function = function

    def remote(self, *arguments: Any) -> Awaitable[Any]:
        return self._function(*arguments)


class Actor:
    """The scheduler's actor, which answers with its life; what dies takes its connections along.

    calls: (by whom, life, method). `release` lets the calls be answered that wait.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, str]] = []
        self.lives = 1
        self.release = asyncio.Event()
        self.called = asyncio.Event()
        self.answers: dict[str, Any] = {}
        self.address, self.call = Method(self._address), Method(self._by_ray)
        self._server = RpcServer(self._by_connection, VERBS, [Reference])

    async def die(self) -> None:
        self.lives += 1
        self._server.close()
        self._server = RpcServer(self._by_connection, VERBS, [Reference])
        await asyncio.sleep(0)

    def close(self) -> None:
        self._server.close()

    async def _address(self) -> Address:
        return await self._server.listen("127.0.0.1")

    async def _by_connection(self, caller: Peer, method: str, arguments: tuple[Any, ...]) -> Any:
        return await self._answer("connection", method)

    async def _by_ray(self, method: str, *arguments: Any) -> Any:
        return await self._answer("ray", method)

    async def _answer(self, by: str, method: str) -> Any:
        life = self.lives
        self.calls.append((by, life, method))
        self.called.set()
        await self.release.wait()
        if life != self.lives:
            await asyncio.Event().wait()
        return QueueCount(life, 0) if method == "count" else self.answers.get(method)


@pytest.fixture
async def actor(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Actor]:
    found = Actor()
    monkeypatch.setattr(handles, "AGAIN_S", 0.01)
    monkeypatch.setattr(handles, "OF_RAY", [Reference])
    monkeypatch.setattr(ray, "get_actor", lambda *_: found)
    yield found
    found.close()


async def asked(handle: SchedulerHandle) -> Any:
    """Call it; the answer is the life that has given it."""
    return (await handle.count()).running


async def test_a_call_whose_scheduler_died_is_made_again_to_the_next_one(actor: Actor) -> None:
    call = asyncio.create_task(asked(SchedulerHandle()))
    await actor.called.wait()
    await actor.die()
    actor.release.set()
    assert await asyncio.wait_for(call, PATIENCE_S) == 2
    assert actor.calls == [("connection", 1, "count"), ("connection", 2, "count")]


async def test_calls_share_a_connection(actor: Actor) -> None:
    handle, many = SchedulerHandle(), 200
    actor.release.set()
    found = []
    ray_get_actor = ray.get_actor
    ray.get_actor = lambda *names: found.append(names) or ray_get_actor(*names)
    assert set(await asyncio.gather(*(asked(handle) for _ in range(many)))) == {1}
    assert len(found) == 1


async def test_what_only_ray_may_carry_goes_by_ray(actor: Actor) -> None:
    handle = SchedulerHandle()
    actor.release.set()
    await handle.report("replica", 1, [Exported("signature", [Reference()])], None)
    assert actor.calls == [("ray", 1, "report")]
    actor.answers["poll"] = [(1, Deliver("signature", [Reference()]))]
    assert await handle.poll("replica", 1, 0) == actor.answers["poll"]
    assert actor.calls[1:] == [("connection", 1, "poll"), ("ray", 1, "poll")]


async def test_a_call_by_ray_whose_scheduler_died_unsaid_is_made_again(actor: Actor) -> None:
    call = asyncio.create_task(
        SchedulerHandle().report("replica", 1, [NodePreviewed(TaskId("job", 0, 1), "1", [Reference()])], None)
    )
    await actor.called.wait()
    await actor.die()
    actor.release.set()
    await asyncio.wait_for(call, PATIENCE_S)
    assert actor.calls == [("ray", 1, "report"), ("ray", 2, "report")]


async def test_a_scheduler_that_does_not_come_back_is_said_to_be_away(
    actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handles, "PATIENCE_S", 0.05)

    def nobody(*_: str) -> None:
        raise ValueError("no actor of that name")

    monkeypatch.setattr(ray, "get_actor", nobody)
    with pytest.raises(NotReadyError, match="the scheduler is not there"):
        await asyncio.wait_for(asked(SchedulerHandle()), PATIENCE_S)


async def test_a_value_that_never_comes_is_taken_for_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "GET_S", 0.05)
    assert await asyncio.wait_for(replica.ObjectStore().get([asyncio.Future()]), PATIENCE_S) is None
    there: asyncio.Future[int] = asyncio.Future()
    there.set_result(3)
    assert await replica.ObjectStore().get([there]) == 3


async def test_node_classes_travel_again_only_once_they_have_changed(
    actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle, specs = SchedulerHandle(), {"Save": NodeSpec("Save", (), (), (), ())}
    monkeypatch.setattr(handles, "SPECS_S", -1.0)
    actor.release.set()
    actor.answers["specs_since"] = ("1.0", specs)
    first = await handle.specs("comfyui")
    actor.answers["specs_since"] = ("1.0", None)
    assert await handle.specs("comfyui") is first
    actor.answers["specs_since"] = ("1.1", {})
    assert await handle.specs("comfyui") == {}
