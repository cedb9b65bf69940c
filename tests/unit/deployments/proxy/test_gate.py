"""What the proxy's clients see while the application is not there: 503, never 404, 500 or a hang."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.responses import PlainTextResponse

from serve_app.deployments.proxy import gate
from serve_app.deployments.proxy.gate import Gate


def app(status: int = 200, kind: bytes = b"application/json", delay_s: float = 0.0):
    async def answer(scope, receive, send):
        await asyncio.sleep(delay_s)
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": b"from the application"})

    return answer


async def silent() -> dict[str, Any]:
    """Receive nothing, ever."""
    return await asyncio.Future()


async def ask(asked: Gate, path: str = "/prompt") -> tuple[int, dict[bytes, bytes], bytes]:
    """Return the status, headers and body of one request; fails if the response is not well-formed."""
    sent = []

    async def send(message):
        sent.append(message)

    await asked({"type": "http", "path": path}, silent, send)
    start, *bodies = sent
    assert start["type"] == "http.response.start"
    assert all(m["type"] == "http.response.body" for m in bodies)
    return start["status"], dict(start["headers"]), b"".join(m.get("body", b"") for m in bodies)


def assert_unavailable(answer) -> None:
    status, headers, body = answer
    assert status == 503
    assert headers[b"retry-after"]
    assert json.loads(body)["status_code"] == 503


@pytest.mark.parametrize("status", [404, 500, 503])
async def test_the_proxys_own_plain_text_errors_become_503(status):
    assert_unavailable(await ask(Gate(app(status, b"text/plain; charset=utf-8"))))


async def test_an_error_in_plain_text_that_the_application_answers_passes_unchanged():
    async def refused(scope, receive, send):
        await PlainTextResponse("never 7", 400)(scope, receive, send)

    status, headers, body = await ask(Gate(refused))
    assert (status, headers[b"content-type"], body) == (400, b"text/plain; charset=utf-8", b"never 7")


async def test_a_request_whose_replica_died_gets_a_503_with_retry_after():
    async def silent(scope, receive, send):
        pass

    applications = [app(), silent]
    asked = Gate(lambda *arguments: applications.pop(0)(*arguments))
    await ask(asked)
    assert_unavailable(await ask(asked))


@pytest.mark.parametrize("status", [200, 400, 404, 500])
async def test_the_applications_answers_pass_unchanged(status):
    assert await ask(Gate(app(status))) == (status, {b"content-type": b"application/json"}, b"from the application")


async def test_a_request_that_would_wait_for_a_replica_gets_a_503_with_retry_after(monkeypatch):
    monkeypatch.setattr(gate, "STARTING_S", 0.01)
    assert_unavailable(await ask(Gate(app(delay_s=5.0))))


async def test_once_the_application_has_answered_slow_answers_are_waited_for(monkeypatch):
    applications = [app(), app(delay_s=0.2)]
    asked = Gate(lambda *arguments: applications.pop(0)(*arguments))
    await ask(asked)
    monkeypatch.setattr(gate, "STARTING_S", 0.05)
    assert (await ask(asked))[0] == 200


async def test_health_routes_of_the_proxy_pass_unchanged():
    assert (await ask(Gate(app(404, b"text/plain")), "/-/healthz"))[0] == 404


async def test_a_client_that_leaves_cancels_its_request():
    cancelled = asyncio.Event()

    async def endless(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def send(message):
        pass

    asked = Gate(endless)
    request = asyncio.create_task(asked({"type": "http", "path": "/view"}, silent, send))
    await asyncio.sleep(0.05)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    await asyncio.wait_for(cancelled.wait(), 60)
