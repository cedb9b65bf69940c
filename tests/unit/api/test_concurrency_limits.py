"""Requests that a client can make last are kept to their rooms: the rest of the server answers as ever."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from serve_app.api.app import create_app
from serve_app.api.comfy.jobs import subscriptions
from serve_app.api.concurrency_limits import ConcurrencyLimit, ConcurrencyLimits
from serve_app.config import AppConfig
from serve_app.config.ingress import IngressConfig
from serve_app.deployments.build import FAILURES, ingress_deployment

JOB = "550e8400-e29b-41d4-a716-446655440000"


class Asked:
    """One request to an application, whose body and end the test decides."""

    def __init__(self, app: Any, method: str, path: str, kind: str = "http", query: str = "", length: int = 9) -> None:
        self.sent: list[dict[str, Any]] = []
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.waits = asyncio.Event()
        self.reads: Callable[[], Any] = lambda: asyncio.sleep(0)
        headers = [(b"content-length", str(length).encode())] if method == "POST" else []
        scope = {"type": kind, "method": method, "path": path, "query_string": query.encode(), "headers": headers}
        self.task = asyncio.create_task(app({**scope, "subprotocols": []}, self.receive, self.send))

    async def receive(self) -> dict[str, Any]:
        self.waits.set()
        return await self.incoming.get()

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        if message["type"] == "websocket.send":
            await self.reads()

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        await asyncio.wait_for(self.task, 60)
        start, body = self.sent[0], b"".join(m.get("body", b"") for m in self.sent[1:])
        return start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, json.loads(body or b"null")

    async def go(self) -> None:
        """Leave as a client that disconnects."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def waiting(asked: list[Asked]) -> list[Asked]:
    for one in asked:
        await asyncio.wait_for(one.waits.wait(), 60)
    return asked


@pytest.mark.parametrize(("path", "worded"), [("/api/prompt", "body_too_slow"), ("/prompt", "Request body too slow")])
async def test_a_body_that_does_not_arrive_is_answered_408_in_the_dialects_words(service, path, worded):
    app = create_app(service, concurrency=ConcurrencyLimits(body_s=0.01))
    asked = Asked(app, "POST", path)
    asked.incoming.put_nowait({"type": "http.request", "body": b'{"pr', "more_body": True})
    status, _, body = await asked.answer()
    assert (status, worded in json.dumps(body), "0.01" in json.dumps(body)) == (408, True, True)


async def test_two_thousand_bodies_that_never_arrive_leave_probes_lists_and_sockets_as_they_were(service):
    app = create_app(service, concurrency=ConcurrencyLimits(bodies=50))
    slow = [Asked(app, "POST", "/api/queue") for _ in range(2000)]
    refused = [await one.answer() for one in (await waiting(slow[:50]), slow[50:])[1]]
    assert {status for status, _, _ in refused} == {503}
    _, headers, body = refused[0]
    assert headers["retry-after"]
    assert "ingress.max_bodies" in json.dumps(body)
    for path in ("/healthz", "/readyz", "/api/prompt", "/queue"):
        assert (await Asked(app, "GET", path).answer())[0] == 200
    await asyncio.gather(*(one.go() for one in slow[:50]))
    quick = Asked(app, "POST", "/api/queue")
    quick.incoming.put_nowait({"type": "http.request", "body": b"{}"})
    assert (await quick.answer())[0] == 200


async def test_a_request_that_is_answered_before_its_body_is_whole_leaves_its_room(service):
    app = create_app(service, concurrency=ConcurrencyLimits(bodies=1))
    for _ in range(3):
        asked = Asked(app, "POST", "/api/queue", length=4)
        asked.incoming.put_nowait({"type": "http.request", "body": b"x" * 2_000_000, "more_body": True})
        assert (await asked.answer())[0] == 413


async def test_polls_and_sockets_share_a_room_and_are_refused_beyond_it(service, scheduler, client, example):
    service.limits = replace(service.limits, poll_s=3600)
    await client.post("/prompt", json={**example, "prompt_id": JOB})
    [queued] = await scheduler.events(JOB, 0, 0)
    app = create_app(service, concurrency=ConcurrencyLimits(listeners=2))
    query = f"after={queued.seq}&timeout_s=3600"
    poll = Asked(app, "GET", f"/jobs/{JOB}/events", query=query)
    socket = Asked(app, "GET", "/ws", "websocket")
    socket.incoming.put_nowait({"type": "websocket.connect"})
    while not socket.sent:
        await asyncio.sleep(0)
    status, headers, body = await Asked(app, "GET", f"/jobs/{JOB}/events", query=query).answer()
    assert (status, bool(headers["retry-after"]), "ingress.max_listeners" in body["detail"]) == (503, True, True)
    another = Asked(app, "GET", "/ws", "websocket")
    await asyncio.wait_for(another.task, 60)
    assert [message["type"] for message in another.sent] == ["websocket.close"]
    assert (await Asked(app, "GET", "/healthz").answer())[0] == 200
    await poll.go()
    socket.incoming.put_nowait({"type": "websocket.disconnect", "code": 1000})
    await asyncio.wait_for(socket.task, 60)
    third = Asked(app, "GET", "/ws", "websocket")
    third.incoming.put_nowait({"type": "websocket.connect"})
    while not third.sent:
        await asyncio.sleep(0)
    assert third.sent[0]["type"] == "websocket.accept"
    await third.go()


async def test_a_socket_whose_client_does_not_read_is_closed(service, client, example, monkeypatch):
    monkeypatch.setattr(subscriptions, "SEND_S", 0.01)
    app = create_app(service)
    socket = Asked(app, "GET", "/ws", "websocket")
    stuck = asyncio.Event()

    async def never() -> None:
        if len(socket.sent) > 2:
            stuck.set()
            await asyncio.Event().wait()

    socket.reads = never
    socket.incoming.put_nowait({"type": "websocket.connect"})
    while len(socket.sent) < 2:
        await asyncio.sleep(0)
    await client.post("/prompt", json=example)
    await asyncio.wait_for(socket.task, 60)
    assert stuck.is_set()


async def test_only_a_sockets_first_message_is_read_and_none_that_is_huge(service, monkeypatch):
    from serve_app.api.comfy.jobs import websocket

    read: list[str] = []
    monkeypatch.setattr(websocket, "_parsed", lambda text: read.append(text) or {})
    socket = Asked(create_app(service), "GET", "/ws", "websocket")
    for message in (
        {"type": "websocket.connect"},
        {"type": "websocket.receive", "text": "x" * 200_000},
        {"type": "websocket.receive", "text": "{}"},
        {"type": "websocket.disconnect", "code": 1000},
    ):
        socket.incoming.put_nowait(message)
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait_for(socket.task, 60)
    assert read == []


def test_the_use_of_a_limit_is_the_share_of_it_that_is_taken():
    limit = ConcurrencyLimit("streams", "limits.streams", 4)
    with limit.acquire(), limit.acquire(), limit.acquire():
        assert limit.use == ("limits.streams", 0.75)
    assert limit.use == ("limits.streams", 0.0)


def test_an_ingress_whose_loop_does_not_answer_is_replaced_as_soon_as_a_replica():
    deployment = ingress_deployment(AppConfig(silence_s=12))
    # A coroutine: of its own, Serve asks the loop that answers requests only once in minutes.
    assert inspect.iscoroutinefunction(deployment.func_or_class.check_health)
    assert deployment._deployment_config.health_check_timeout_s * FAILURES == 12


def test_serve_lets_no_request_wait_behind_what_lasts():
    ingress = IngressConfig(max_bodies=700, max_listeners=5000)
    deployment = ingress_deployment(AppConfig(ingress=ingress))
    assert deployment.max_ongoing_requests >= 700 + 5000 + 10 * ingress.ongoing_requests
