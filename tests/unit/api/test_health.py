"""What probes are answered."""

from __future__ import annotations

import httpx

from serve_app.api.app import create_app
from serve_app.errors import NotReadyError
from serve_app.service import Service


async def test_a_server_that_can_take_jobs_is_alive_and_ready(client):
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    assert (await client.get("/readyz")).json() == {"status": "ready"}
    assert (await client.head("/readyz")).status_code == 200


async def test_readiness_tells_of_replicas_that_cannot_work(scheduler, client):
    await scheduler.trouble("r9", "comfyui", "it has no main.py")
    answer = await client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ready", "troubles": [{"pool": "comfyui", "why": "it has no main.py"}]}


async def test_a_server_whose_scheduler_is_away_is_alive_but_not_ready(client, scheduler):
    scheduler.refusal = NotReadyError("the scheduler is not there")
    assert (await client.get("/healthz")).status_code == 200
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["detail"]) == (503, "the scheduler is not there")
    assert int(answer.headers["Retry-After"]) > 0


async def test_a_process_that_has_not_found_its_service_yet_is_alive():
    def not_yet() -> Service:
        raise NotReadyError("starting")

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=create_app(not_yet)), base_url="http://x") as client:
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503
