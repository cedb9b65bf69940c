"""Each limit that protects the control plane: its refusals name its key, and are counted under it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from serve_app.api.app import create_app
from serve_app.api.concurrency_limits import ConcurrencyLimits
from serve_app.limits import REFUSALS
from tests.unit.api.test_concurrency_limits import Asked, waiting

IDS = [f"550e8400-e29b-41d4-a716-4466554400{number:02}" for number in range(20)]


@pytest.fixture
def counted() -> Callable[[str], int]:
    """Return how often a limit has refused something since the test began."""
    before = REFUSALS.copy()
    return lambda key: REFUSALS[key] - before[key]


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/prompt", "ingress.max_body_bytes"),
        ("/api/prompt", "ingress.max_body_bytes"),
        ("/api/queue", "ingress.max_command_bytes"),
    ],
)
async def test_a_body_that_is_too_large(client, service, counted, path, key):
    service.limits = replace(service.limits, body_bytes=2000, command_bytes=2000)
    answer = await client.post(path, content=b"{" + b" " * 3000)
    assert answer.status_code == 413
    assert f"{key} of the configuration allows 2000" in answer.text
    assert counted(key) == 1


async def test_an_upload_that_is_too_large(client, counted):
    answer = await client.post("/api/upload/image", files={"image": ("a.png", b"x" * 300_000)})
    assert answer.status_code == 413
    assert "ingress.max_upload_bytes of the configuration allows 200000" in answer.text
    assert counted("ingress.max_upload_bytes") == 1


@pytest.mark.parametrize(
    ("path", "member"), [("/api/queue", "delete"), ("/api/history", "delete"), ("/api/jobs/cancel", "job_ids")]
)
async def test_more_jobs_than_one_request_may_name(client, counted, path, member):
    answer = await client.post(path, json={member: [IDS[0]] * 1001})
    assert answer.status_code == 400
    assert "1001 jobs; ingress.max_ids of the configuration allows 1000" in answer.text
    assert counted("ingress.max_ids") == 1


async def test_more_nodes_than_a_workflow_may_have(client, service, example, counted):
    service.limits = replace(service.limits, sizes=service.limits.sizes.model_copy(update={"graph_nodes": 2}))
    answer = await client.post("/prompt", json=example)
    assert answer.status_code == 400
    assert "limits.graph_nodes of the configuration allows 2" in answer.text
    assert counted("limits.graph_nodes") == 1


@pytest.mark.parametrize(
    ("rule", "key"), [({"max_queue": 2}, "max_queue"), ({"max_queue": 4, "client_share": 0.5}, "client_share")]
)
async def test_more_jobs_than_may_wait(client, replica, example, counted, rule, key):
    admission = replica.scheduler.scheduler.admission
    admission.rules = replace(admission.rules, **{"client_share": 1.0, **rule})
    answers = [await client.post("/prompt", json={**example, "prompt_id": job_id}) for job_id in IDS[:3]]
    assert [answer.status_code for answer in answers] == [200, 200, 503]
    assert key in answers[-1].text
    assert counted(key) == 1


@pytest.mark.parametrize(
    ("concurrency", "kind", "path", "key"),
    [
        (ConcurrencyLimits(bodies=1), "http", "/api/prompt", "ingress.max_bodies"),
        (ConcurrencyLimits(listeners=1), "websocket", "/ws", "ingress.max_listeners"),
    ],
)
async def test_one_long_request_more_than_the_limit_is_refused_and_counted(
    service, counted, concurrency, kind, path, key
):
    app = create_app(service, concurrency=concurrency)
    [first] = await waiting([Asked(app, "POST", path, kind)])
    if kind == "websocket":
        first.incoming.put_nowait({"type": "websocket.connect"})
        while not first.sent:
            await asyncio.sleep(0.01)
    assert concurrency.use[key] == 1.0
    second = Asked(app, "POST", path, kind)
    await asyncio.wait_for(second.task, 60)
    assert counted(key) == 1
    await first.go()
    assert concurrency.use[key] == 0.0


async def test_a_body_that_takes_too_long(service, counted):
    asked = Asked(create_app(service, concurrency=ConcurrencyLimits(body_s=0.01)), "POST", "/prompt")
    status, _, body = await asked.answer()
    assert status == 408
    assert "ingress.body_s of the configuration allows 0.01 s" in str(body)
    assert counted("ingress.body_s") == 1


async def test_a_queue_beyond_what_one_answer_carries(client, service, replica, example, counted):
    for job_id in IDS[:6]:
        assert (await client.post("/prompt", json={**example, "prompt_id": job_id})).status_code == 200
    await replica.start(IDS[0])
    whole = await queued(client)
    assert [bool(item[2]) for item in (*whole["queue_running"], *whole["queue_pending"])] == [True] * 6
    assert (counted("ingress.queue_items"), counted("ingress.queue_bytes")) == (0, 0)

    service.limits = replace(service.limits, queue_items=4, queue_bytes=10_000)
    response = await client.get("/api/queue")
    cut = response.json()
    assert [item[1] for item in cut["queue_running"]] == IDS[:1]
    assert [item[1] for item in cut["queue_pending"]] == IDS[1:4]
    assert [len(item) for item in cut["queue_pending"]] == [5] * 3
    assert [bool(item[2]) for item in (*cut["queue_running"], *cut["queue_pending"])][-1] is False
    assert (response.headers["X-Queue-Running"], response.headers["X-Queue-Pending"]) == ("1", "5")
    assert (counted("ingress.queue_items"), counted("ingress.queue_bytes")) == (1, 1)

    contract = await client.get("/queue")
    assert [job_id for job_id, _ in contract.json()["queue_pending"]] == IDS[1:4]
    assert contract.headers["X-Queue-Pending"] == "5"


async def queued(client: httpx.AsyncClient) -> dict[str, Any]:
    body: dict[str, Any] = (await client.get("/api/queue")).json()
    return body
