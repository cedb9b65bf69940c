"""The event stream of Comfy API v2, read over a real connection."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from serve_app.api.app import create_app
from serve_app.api.concurrency_limits import ConcurrencyLimits
from serve_app.api.v2 import events
from serve_app.service.service import Service
from serve_app.store.files.store import FileRef
from tests.unit.api.http_server import listening

UNKNOWN = "550e8400-e29b-41d4-a716-446655440000"


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(service, concurrency=ConcurrencyLimits(listeners=2))
    async with listening(app) as url, httpx.AsyncClient(base_url=url) as client:
        yield client


class Stream:
    """Frames as (event, data); a comment is ("", its text)."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines

    async def next(self) -> tuple[str, Any]:
        """Return the next frame. Errors: StopAsyncIteration once the stream has ended."""
        name = ""
        async with asyncio.timeout(60):
            while True:
                line = await anext(self._lines)
                if line.startswith(":"):
                    return "", line
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                if line.startswith("data: "):
                    return name, json.loads(line.removeprefix("data: "))

    async def rest(self) -> list[tuple[str, Any]]:
        found = []
        while True:
            try:
                found.append(await self.next())
            except StopAsyncIteration:
                return found


@asynccontextmanager
async def stream(client: httpx.AsyncClient, job_id: str) -> AsyncIterator[Stream]:
    async with client.stream("GET", f"/api/v2/jobs/{job_id}/events") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-cache", "no")
        yield Stream(answer.aiter_lines())


async def queued(client: httpx.AsyncClient, example: dict[str, Any]) -> str:
    return str((await client.post("/api/v2/jobs", json={"workflow": example["prompt"]})).json()["id"])


async def test_a_stream_begins_with_how_things_stand_and_ends_with_the_job(client, replica, example):
    job_id = await queued(client, example)
    async with stream(client, job_id) as told:
        assert await told.next() == ("status", {"status": "queued", "queue_position": 1})
        await replica.start(job_id)
        assert await told.next() == ("status", {"status": "running", "queue_position": None})
        name, progress = await told.next()
        assert (name, progress["value"], progress["nodes_total"]) == ("progress", 0.0, 6)
        await replica.executing(job_id, "3")
        await replica.progress(job_id, "3", 5, 20)
        while progress["step"] is None:
            name, progress = await told.next()
        assert (progress["message"], progress["value"]) == ("KSampler 5/20", 0.2)
        await replica.succeed(job_id, {})
        assert (await told.rest())[-1] == ("status", {"status": "succeeded", "queue_position": None})


async def test_outputs_are_sent_before_the_end(client, replica, volume, example):
    pytest.importorskip("blake3")
    volume.write(FileRef("output", "", "a.png"), b"picture")
    job_id = await queued(client, example)
    async with stream(client, job_id) as told:
        await replica.succeed(job_id, {"6": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]}})
        frames = await told.rest()
    names = [name for name, data in frames if data != {"status": "running", "queue_position": None}]
    assert [name for name in names if name != "progress"] == ["status", "output", "status"]
    [output] = [data for name, data in frames if name == "output"]
    assert output["id"] == (await client.get(f"/api/v2/jobs/{job_id}")).json()["outputs"][0]["id"]
    assert (await client.get(output["url"])).content == b"picture"


async def test_a_late_subscriber_gets_the_latest_state_first(client, replica, example):
    job_id = await queued(client, example)
    await replica.start(job_id)
    await replica.executing(job_id, "3")
    await replica.progress(job_id, "3", 10, 20)
    async with stream(client, job_id) as told:
        assert (await told.next())[1]["status"] == "running"
        assert (await told.next())[1]["step"] == 10


async def test_only_the_newest_preview_is_sent_and_once(client, replica, example, monkeypatch):
    monkeypatch.setattr(events, "PROGRESS_S", 0.05)
    job_id = await queued(client, example)
    await replica.start(job_id)
    await replica.executing(job_id, "3")
    for image in (b"old", b"new"):
        await replica.preview(job_id, "3", image)
    async with stream(client, job_id) as told:
        assert [(await told.next())[0] for _ in range(2)] == ["status", "progress"]
        picture = {"node_id": "3", "content_type": "image/jpeg", "data_base64": base64.b64encode(b"new").decode()}
        assert await told.next() == ("preview", picture)
        await replica.progress(job_id, "3", 1, 20)
        assert (await told.next())[0] == "progress"
        await replica.succeed(job_id, {})
        assert "preview" not in [name for name, _ in await told.rest()]
    assert await replica.scheduler.preview(job_id) is None


async def test_an_ended_jobs_outputs_are_sent_and_then_its_end(client, replica, volume, example):
    volume.write(FileRef("output", "", "a.png"), b"picture")
    job_id = await queued(client, example)
    await replica.succeed(job_id, {"6": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]}})
    async with stream(client, job_id) as told:
        (first, output), last = await told.rest()
    assert (first, output["name"], last[1]["status"]) == ("output", "a.png", "succeeded")


async def test_an_ended_jobs_end_is_sent(client, replica, example):
    job_id = await queued(client, example)
    await client.post(f"/api/v2/jobs/{job_id}/cancel")
    async with stream(client, job_id) as told:
        assert await told.rest() == [("status", {"status": "canceled", "queue_position": None})]


async def test_a_job_that_moves_up_the_queue_gets_its_position(client, example, monkeypatch):
    monkeypatch.setattr(events, "MOVES_S", 0.05)
    first, second = await queued(client, example), await queued(client, example)
    async with stream(client, second) as told:
        assert (await told.next())[1]["queue_position"] == 2
        await client.post(f"/api/v2/jobs/{first}/cancel")
        assert await told.next() == ("status", {"status": "queued", "queue_position": 1})


async def test_a_silent_stream_is_kept_alive(client, replica, example, monkeypatch):
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.05)
    job_id = await queued(client, example)
    async with stream(client, job_id) as told:
        await told.next()
        assert await told.next() == ("", ": ping")


async def test_one_stream_more_than_the_limit_gets_a_429_with_retry_after(client, example):
    job_id = await queued(client, example)
    async with stream(client, job_id) as first, stream(client, job_id) as second:
        await first.next()
        await second.next()
        answer = await client.get(f"/api/v2/jobs/{job_id}/events")
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_streams")
        assert int(answer.headers["Retry-After"]) > 0
    async with asyncio.timeout(60):  # a place is free again once the server has seen that its client is gone
        status_code = 429
        while status_code == 429:
            await asyncio.sleep(0.05)
            async with client.stream("GET", f"/api/v2/jobs/{job_id}/events") as answer:
                status_code = answer.status_code
        assert status_code == 200


async def test_who_asks_for_a_streams_head_has_the_connection_back_at_once(client, example):
    job_id = await queued(client, example)
    async with httpx.AsyncClient(base_url=client.base_url, limits=httpx.Limits(max_connections=1)) as one:
        head = await one.head(f"/api/v2/jobs/{job_id}/events")
        assert (head.status_code, head.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert (await one.get("/healthz", timeout=30)).status_code == 200


async def test_an_unknown_job_has_no_stream(client):
    answer = await client.get(f"/api/v2/jobs/{UNKNOWN}/events")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
