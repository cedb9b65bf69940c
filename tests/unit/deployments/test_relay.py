"""Calls of node packs' routes on their way to a pool's deployment, whose handle is a stand-in here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import DeploymentUnavailableError

from serve_app.deployments import relay
from serve_app.deployments.relay import Relay
from serve_app.errors import NotReadyError
from serve_app.packs.routes import PackAnswer, PackCall

CALL = PackCall("GET", "/mine", (), b"")
ANSWER = PackAnswer(200, (), b"mine")


async def pieces(answer: AsyncIterator[Any]) -> list[Any]:
    return [piece async for piece in answer]


class Answers:
    """What Serve's handle returns: an iterator that can be cancelled."""

    def __init__(self, steps: AsyncIterator[Any]) -> None:
        self._steps = steps
        self.cancelled = False

    async def __anext__(self) -> Any:
        return await anext(self._steps)

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """A deployment's handle whose method `answer` does these steps."""

    def __init__(self, steps: Callable[[PackCall], AsyncIterator[Any]]) -> None:
        self._steps = steps
        self.answers: list[Answers] = []
        self.answer = self

    def options(self, *, stream: bool) -> Handle:
        assert stream
        return self

    def remote(self, call: PackCall) -> Answers:
        self.answers.append(Answers(self._steps(call)))
        return self.answers[-1]


async def test_only_a_replica_is_waited_for_no_longer_than_so_its_answer_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "REPLICA_S", 0.2)

    taken, given_up = asyncio.Event(), asyncio.Event()

    async def slow(call: PackCall) -> AsyncIterator[Any]:
        yield "replica"
        taken.set()
        await given_up.wait()
        yield ANSWER

    async def asleep(call: PackCall) -> AsyncIterator[None]:
        await asyncio.Event().wait()
        yield None

    handles = {"slow": Handle(slow), "asleep": Handle(asleep)}
    answer = asyncio.create_task(pieces(Relay(handles)("slow", CALL)))
    await taken.wait()
    with pytest.raises(NotReadyError, match="no replica of pool asleep has taken the call"):
        await pieces(Relay(handles)("asleep", CALL))
    given_up.set()
    assert await answer == ["replica", ANSWER]
    assert handles["asleep"].answers[0].cancelled
    assert not handles["slow"].answers[0].cancelled


async def test_an_answer_without_end_ends_with_whoever_reads_it() -> None:
    async def endless(call: PackCall) -> AsyncIterator[Any]:
        yield "replica"
        yield PackAnswer(200, (), b"", more=True)
        while True:
            yield b"more"

    handle = Handle(endless)
    read = Relay({"cpu": handle})("cpu", CALL)
    assert [await anext(read) for _ in range(4)][2:] == [b"more", b"more"]
    await read.aclose()
    assert handle.answers[0].cancelled


@pytest.mark.parametrize("error", [ActorDiedError(), DeploymentUnavailableError("gone")])
async def test_a_replica_that_dies_with_the_call_has_an_error_of_its_own(error: Exception) -> None:
    async def dying(call: PackCall) -> AsyncIterator[str]:
        yield "replica"
        raise error

    with pytest.raises(NotReadyError, match="that had the call is gone"):
        await pieces(Relay({"cpu": Handle(dying)})("cpu", CALL))
