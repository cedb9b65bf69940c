"""Calls to the scheduler's actor, which is a stand-in here that may die without anybody being told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import ray

from serve_app.deployments import handles, replica
from serve_app.deployments.handles import SchedulerHandle
from serve_app.graph.spec import NodeSpec

PATIENCE_S = 20.0


class Method:
    """A method of an actor, called as Ray has it."""

    def __init__(self, function: Callable[..., Awaitable[Any]]) -> None:
        self._function = function

    def remote(self, *arguments: Any) -> Awaitable[Any]:
        return self._function(*arguments)


class Actor:
    """The scheduler's actor, which answers with its life. A call of a life that has ended is never answered."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, str]] = []
        self.looks = 0
        self.lives = 1
        self.release = asyncio.Event()
        self.called = asyncio.Event()
        self.call, self.life = Method(self._call), Method(self._life)

    def die(self) -> None:
        self.lives += 1

    async def _call(self, method: str, *arguments: Any) -> int:
        life = self.lives
        self.calls.append((life, method))
        self.called.set()
        await self.release.wait()
        if life != self.lives:
            await asyncio.Event().wait()
        return life

    async def _life(self) -> str:
        self.looks += 1
        return str(self.lives)


async def asked(handle: SchedulerHandle) -> Any:
    """Call it; the answer is the life that has given it."""
    return await handle.count()


@pytest.fixture
def actor(monkeypatch: pytest.MonkeyPatch) -> Actor:
    found = Actor()
    monkeypatch.setattr(handles, "LOOK_S", 0.05)
    monkeypatch.setattr(ray, "get_actor", lambda *_: found)
    return found


async def test_a_call_whose_scheduler_died_unsaid_is_made_again_to_the_next_one(actor: Actor) -> None:
    call = asyncio.create_task(asked(SchedulerHandle()))
    await actor.called.wait()
    actor.die()
    actor.release.set()
    assert await asyncio.wait_for(call, PATIENCE_S) == 2
    assert actor.calls == [(1, "count"), (2, "count")]


async def test_a_call_that_is_slow_is_made_once_while_its_scheduler_lives(actor: Actor) -> None:
    call = asyncio.create_task(asked(SchedulerHandle()))
    while actor.looks < 4:
        await asyncio.sleep(0.01)
    actor.release.set()
    assert await asyncio.wait_for(call, PATIENCE_S) == 1
    assert actor.calls == [(1, "count")]


async def test_calls_that_wait_ask_together_whether_the_scheduler_lives(actor: Actor) -> None:
    handle, many = SchedulerHandle(), 200
    first = asyncio.create_task(asked(handle))
    await actor.called.wait()
    calls = [first, *(asyncio.create_task(asked(handle)) for _ in range(many))]
    while actor.looks < 4:
        await asyncio.sleep(0.01)
    actor.die()
    actor.release.set()
    assert set(await asyncio.wait_for(asyncio.gather(*calls), PATIENCE_S)) == {2}
    # Each finds the actor again, which asks too; all that waited meanwhile asked a few times and not once each.
    assert actor.looks < many + 50


async def test_a_value_that_never_comes_is_taken_for_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "GET_S", 0.05)
    assert await asyncio.wait_for(replica.ObjectStore().get([asyncio.Future()]), PATIENCE_S) is None
    there: asyncio.Future[int] = asyncio.Future()
    there.set_result(3)
    assert await replica.ObjectStore().get([there]) == 3


async def test_a_caller_that_gives_up_leaves_no_call_behind(actor: Actor) -> None:
    before = asyncio.all_tasks()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(SchedulerHandle().count(), 0.2)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


class Classes:
    """An actor whose node classes have a tag. asked: the calls."""

    def __init__(self) -> None:
        self.tag, self.specs = "1.0", {"Save": NodeSpec("Save", (), (), (), ())}
        self.asked: list[Any] = []
        self.call, self.life = Method(self._call), Method(self._life)

    async def _call(self, method: str, *arguments: Any) -> Any:
        self.asked.append((method, *arguments))
        return self.tag, None if arguments[0] == self.tag else self.specs

    async def _life(self) -> str:
        return "1"


async def test_node_classes_travel_again_only_once_they_have_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    handle, actor = SchedulerHandle(), Classes()
    monkeypatch.setattr(handles, "SPECS_S", -1.0)
    monkeypatch.setattr(ray, "get_actor", lambda *_: actor)
    first = await handle.specs("comfyui")
    assert await handle.specs("comfyui") is first
    actor.tag, actor.specs = "1.1", {}
    assert await handle.specs("comfyui") == {}
    assert actor.asked == [("specs_since", tag, "comfyui") for tag in ("", "1.0", "1.0")]
