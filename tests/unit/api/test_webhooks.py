"""Webhooks: made, listed and deleted by clients, and delivered to a receiver for jobs of a real scheduler."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve_app.api.app import create_app
from serve_app.config.limits import WebhookLimits
from serve_app.service.request_limits import Limits
from serve_app.service.service import Service
from serve_app.store.database.webhooks import EVENTS
from tests.unit.api.http_server import listening
from tests.unit.api.scripted_replica import scripted

URL = "https://example.com/hook"


async def made(client: httpx.AsyncClient, **keys: object) -> dict[str, Any]:
    answer = await client.post("/api/webhooks", json={"url": URL, **keys})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_webhook_is_made_shown_listed_and_deleted_and_its_secret_is_shown_once(client):
    first = await made(client)
    secret = "whsec_" + base64.b64encode(bytes(24)).decode()
    second = await made(client, secret=secret, events=["job.queued", "job.failed", "job.queued"])
    assert first["secret"].startswith("whsec_")
    assert (second["secret"], second["events"]) == (secret, ["job.queued", "job.failed"])
    listed = (await client.get("/api/webhooks")).json()["webhooks"]
    assert listed == [{k: v for k, v in w.items() if k != "secret"} for w in (first, second)]
    path = f"/api/webhooks/{first['id']}"
    assert (await client.get(path)).json() == listed[0]
    assert (await client.get(f"{path}/deliveries")).json() == {"deliveries": []}
    assert (await client.delete(path)).status_code == 204
    for answer in (await client.get(path), await client.delete(path), await client.get(f"{path}/deliveries")):
        assert answer.status_code == 404
        assert answer.json()["error"] == "Webhook not found"


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "'url'"),
        ({"url": "http://127.0.0.1/"}, "webhooks.allowed_networks"),
        ({"url": URL, "events": []}, "'events'"),
        ({"url": URL, "events": ["job.lost"]}, "job.succeeded"),
        ({"url": URL, "events": [["x"]]}, "'events'"),
        ({"url": URL, "secret": "abc"}, "'secret'"),
        ({"url": URL, "colour": 1}, "'colour'"),
    ],
)
async def test_a_webhook_that_cannot_be_is_refused_with_the_reason(client, body, named):
    answer = await client.post("/api/webhooks", json=body)
    assert answer.status_code == 400
    assert named in answer.json()["detail"]


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "state=lost", "cursor=x"])
async def test_a_list_of_deliveries_that_cannot_be_is_refused(client, query):
    webhook = await made(client)
    assert (await client.get(f"/api/webhooks/{webhook['id']}/deliveries?{query}")).status_code == 400


async def test_there_are_no_more_than_the_configuration_allows(client, service):
    service.limits = replace(service.limits, webhooks=WebhookLimits(most=1))
    await made(client)
    answer = await client.post("/api/webhooks", json={"url": URL})
    assert (answer.status_code, "webhooks.most" in answer.json()["detail"]) == (409, True)


async def test_deliveries_are_paged_by_state_and_sent_again(client, example, replica):
    webhook = await made(client, events=list(EVENTS), url="https://nowhere.invalid/")
    jobs = [(await client.post("/prompt", json=example)).json()["prompt_id"] for _ in range(3)]
    path = f"/api/webhooks/{webhook['id']}/deliveries"
    first = (await client.get(path, params={"limit": 2})).json()
    second = (await client.get(path, params={"limit": 2, "cursor": first["next_cursor"]})).json()
    found = [*first["deliveries"], *second["deliveries"]]
    assert [d["job_id"] for d in found] == jobs[::-1]
    assert "next_cursor" not in second
    assert {d["type"] for d in found} == {"job.queued"}
    assert found[0]["payload"]["data"]["id"] == jobs[-1]
    assert (await client.get(path, params={"state": "delivered"})).json() == {"deliveries": []}
    again = await client.post(f"{path}/{found[0]['id']}/send")
    assert (again.status_code, again.json()["state"]) == (202, "pending")
    for missing in ("x", "00000000-0000-0000-0000-000000000000"):
        assert (await client.post(f"{path}/{missing}/send")).status_code == 404


async def test_a_receiver_gets_the_events_of_a_job_with_valid_signatures(volume, example):
    taken: asyncio.Queue[tuple[dict[str, str], bytes]] = asyncio.Queue()

    async def take(request: Request) -> Response:
        await taken.put((dict(request.headers), await request.body()))
        return Response(status_code=204)

    async with listening(Starlette(routes=[Route("/hook", take, methods=["POST"])])) as url:
        limits = WebhookLimits(allowed_networks=(ipaddress.IPv4Network("127.0.0.1/32"),))
        async with scripted(webhooks=limits) as told:
            bounds = Limits(9999, 9999, webhooks=limits)
            service = Service(told.scheduler.client, volume, lambda _: ["sd15.safetensors"], bounds)
            transport = httpx.ASGITransport(app=create_app(service))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as there:
                webhook = await made(there, url=f"{url}/hook", events=list(EVENTS))
                job_id = (await there.post("/prompt", json=example)).json()["prompt_id"]
                await told.succeed(job_id, {})
                async with asyncio.timeout(60):
                    seen = [await taken.get() for _ in range(3)]
    key = base64.b64decode(str(webhook["secret"]).removeprefix("whsec_"))
    for headers, body in seen:
        text = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        signature = base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{signature}"
        assert headers["content-type"] == "application/json"
    assert [json.loads(body)["type"] for _, body in seen] == ["job.queued", "job.running", "job.succeeded"]
    assert {json.loads(body)["data"]["id"] for _, body in seen} == {job_id}
