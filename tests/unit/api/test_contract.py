from __future__ import annotations

import json
import re
from typing import Any
from unittest.mock import ANY

import httpx
import jsonschema
import pytest

from serve_app.api.app import create_app
from serve_app.errors import NotReadyError, UnavailableError
from serve_app.scheduler.protocol.cluster_view import Gpu, HostStats
from serve_app.service.service import Service
from tests.unit.api.conftest import DOCUMENT
from tests.unit.api.scripted_replica import scripted
from tests.usual_limits import LIMITS

UNKNOWN = "550e8400-e29b-41d4-a716-446655440000"


def conforms(schema: str, value: Any) -> None:
    """Raise if a value is not what the contract's document says."""
    jsonschema.validate(value, {"$ref": f"#/components/schemas/{schema}", "components": DOCUMENT["components"]})


async def queued(client: httpx.AsyncClient, example: dict[str, Any], **members: Any) -> str:
    job_id: str = (await client.post("/prompt", json={**example, **members})).json()["prompt_id"]
    return job_id


async def history(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    entries = (await client.get(f"/history/{job_id}")).json()
    conforms("ExecutionHistory", entries)
    entry: dict[str, Any] = entries[job_id]
    return entry


async def test_an_idle_queue_is_empty_and_null(client):
    queue = (await client.get("/queue")).json()
    conforms("QueueStatus", queue)
    assert queue == {"queue_pending": [], "queue_running": None, "running": []}


async def test_the_queue_names_the_job_that_started_first_and_lists_all_that_run(client, replica, example):
    first, third = await queued(client, example), await queued(client, example)
    second = await queued(client, example, front=True)
    await replica.start(second)
    await replica.start(first)
    queue = (await client.get("/queue")).json()
    conforms("QueueStatus", queue)
    assert queue["queue_running"] == second
    assert queue["running"] == [second, first]
    assert [(job_id, data.keys()) for job_id, data in queue["queue_pending"]] == [(third, {"prompt", "outputs"})]
    assert queue["queue_pending"][0][1]["prompt"]["1"]["class_type"] == "CheckpointLoaderSimple"


async def test_history_follows_a_job_from_acceptance_to_success(client, replica, scheduler, example):
    job_id = await queued(client, example)
    entry = await history(client, job_id)
    assert entry["status"] == {"status_code": 0, "completed": False, "status_str": "queued", "messages": []}
    assert entry["timestamp"] == (await scheduler.job(job_id)).created_s

    await replica.start(job_id)
    await replica.progress(job_id, "3", 10, 20)
    entry = await history(client, job_id)
    assert entry["status"] == {"status_code": 40, "completed": False, "status_str": "running", "messages": []}

    outputs = {"6": {"images": [{"filename": "output_00001_.png", "subfolder": "", "type": "output"}]}}
    await replica.succeed(job_id, outputs)
    entry = await history(client, job_id)
    assert entry["status"] == {"status_code": 100, "completed": True, "status_str": "success", "messages": []}
    assert entry["outputs"] == outputs
    assert entry["timestamp"] == (await scheduler.job(job_id)).ended_s


@pytest.mark.parametrize(
    ("node", "class_type", "where"),
    [("3", "KSampler", "KSampler 3"), ("3", "", "node 3"), ("", "", "the job")],
)
async def test_history_says_why_and_where_a_job_failed(client, replica, example, node, class_type, where):
    job_id = await queued(client, example)
    reason = {"exception_type": "NodeError", "message": "steps must be at least 1", "traceback": ["…"]}
    await replica.fail(job_id, {"node": node, "class_type": class_type, **reason})
    status = (await history(client, job_id))["status"]
    assert (status["completed"], status["status_str"]) == (False, "error")
    assert status["status_code"] < 100
    assert status["messages"] == [f"{where}: NodeError: steps must be at least 1"]


async def test_history_says_that_a_job_was_cancelled(client, example):
    job_id = await queued(client, example)
    assert (await client.post(f"/jobs/{job_id}/cancel")).json() == {"cancelled": True}
    assert (await client.post(f"/jobs/{job_id}/cancel")).json() == {"cancelled": False}
    status = (await history(client, job_id))["status"]
    assert (status["completed"], status["status_str"]) == (False, "cancelled")
    assert status["messages"] == ["the job was cancelled"]


async def test_history_holds_the_prompt_as_comfyui_does_without_credentials(client, scheduler, example):
    extra = {"extra_pnginfo": {"workflow": {}}, "auth_token_comfy_org": "secret", "api_key_comfy_org": "secret"}
    job_id = await queued(client, example, extra_data=extra, number=7)
    response = await client.get(f"/history/{job_id}")
    number, identity, prompt, extra_data, outputs = response.json()[job_id]["prompt"]
    assert (number, identity, outputs) == (7, job_id, ["6"])
    assert prompt == (await scheduler.job(job_id)).prompt
    assert extra_data == {"extra_pnginfo": {"workflow": {}}, "request_id": ANY}
    assert (await scheduler.job(job_id)).extra_data["auth_token_comfy_org"] == "secret"


@pytest.mark.parametrize("job_id", [UNKNOWN, "no-uuid", "%00", "..", "%F0%9F%90%88", "a" * 5000])
async def test_an_unknown_id_has_an_empty_history(client, job_id):
    response = await client.get(f"/history/{job_id}")
    if job_id != "..":
        assert (response.status_code, response.json()) == (200, {})
    else:
        assert response.status_code == 404


async def test_files_that_a_node_calls_animated_are_gifs_and_images(client, replica, example):
    example["prompt"]["7"] = example["prompt"]["6"]
    job_id = await queued(client, example)
    file = {"filename": "a_00001_.webp", "subfolder": "", "type": "output"}
    shown = {"6": {"images": [file], "animated": [True]}, "7": {"images": [], "animated": [False]}}
    await replica.succeed(job_id, shown)
    response = await client.get(f"/history/{job_id}")
    assert response.json()[job_id]["outputs"] == {
        "6": {"images": [file], "gifs": [file], "animated": [True]},
        "7": {"images": [], "animated": [False]},
    }


async def test_values_that_json_cannot_represent_become_null(client, replica, example):
    job_id = await queued(client, example)
    await replica.succeed(job_id, {"6": {"score": [float("nan"), 1.5], "text": ["\ud800"]}})
    response = await client.get(f"/history/{job_id}")
    assert response.json()[job_id]["outputs"] == {"6": {"score": [None, 1.5], "text": ["\ud800"]}}


async def test_system_stats_add_up_every_host_and_count_each_gpu_once(volume):
    gpus = [Gpu(f"GPU-{i}", "H100", 80_000, 60_000, 20_000) for i in range(3)]
    hosts = (
        HostStats("a", 64_000, 16_000, 48_000, (gpus[0], gpus[1])),
        HostStats("b", 32_000, 8_000, 24_000, (gpus[1], gpus[2])),
    )
    async with scripted(host=hosts[0]) as replica:
        await replica.announce(host=hosts[1])
        app = create_app(Service(replica.scheduler.client, volume, lambda folder: [], LIMITS))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            stats = (await client.get("/system_stats")).json()
    conforms("SystemStats", stats)
    assert 0 <= stats.pop("uptime") < 3600
    card = {"name": "H100", "vram_total": 80_000, "vram_free": 60_000, "vram_used": 20_000}
    assert stats == {
        "gpus": [card] * 3,
        "ram": {"total": 96_000, "used": 24_000, "available": 72_000},
    }


async def test_system_stats_of_a_cluster_without_gpus_list_none(client):
    stats = (await client.get("/system_stats")).json()
    conforms("SystemStats", stats)
    assert stats["gpus"] == []


@pytest.mark.parametrize("path", ["/queue", f"/history/{UNKNOWN}", "/system_stats", "/nodes", "/catalog", "/status"])
async def test_every_route_answers_503_until_the_service_is_found(path):
    def service() -> Service:
        raise NotReadyError("the scheduler is not up yet", 3)

    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.get(path)
    assert (response.status_code, response.headers["Retry-After"]) == (503, "3")
    conforms("ErrorResponse", response.json())


async def test_a_kind_of_unavailable_that_nobody_listed_is_still_503(client, scheduler):
    class SoonError(UnavailableError):
        pass

    scheduler.refusal = SoonError("soon")
    assert (await client.get("/queue")).status_code == 503


@pytest.mark.parametrize("path", ["/nowhere", "/queue/", "/prompt/x", "/jobs", "/history/a/b", "/docs/x.js", "/redoc"])
async def test_an_unknown_route_is_404_with_the_contracts_body(client, path):
    response = await client.get(path)
    assert response.status_code == 404
    conforms("ErrorResponse", response.json())
    assert response.json()["status_code"] == 404


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/prompt", "POST"), ("DELETE", "/queue", "GET, HEAD"), ("POST", "/view", "GET, HEAD")],
)
async def test_a_wrong_method_is_405_and_names_the_right_ones(client, method, path, allowed):
    response = await client.request(method, path)
    assert response.status_code == 405
    assert sorted(response.headers["Allow"].split(", ")) == allowed.split(", ")
    conforms("ErrorResponse", response.json())


async def test_an_unforeseen_failure_is_a_500_that_keeps_its_reason_to_the_log(client, scheduler, caplog, monkeypatch):
    async def broken():
        return None

    monkeypatch.setattr(scheduler, "cluster", broken)
    with caplog.at_level("ERROR", "serve_app.api"):
        response = await client.get("/system_stats")
    assert response.status_code == 500
    conforms("ErrorResponse", response.json())
    assert "NoneType" not in response.text
    assert "GET /system_stats failed" in caplog.text
    assert "NoneType" in caplog.text


async def test_the_served_document_is_the_contract_with_this_server_as_its_address(client):
    served = (await client.get("/openapi.json")).json()
    assert served["servers"] == [{"url": "/", "description": "This server"}]
    assert list(served["paths"]) == ["/prompt", "/queue", "/history/{prompt_id}", "/view", "/system_stats"]
    assert served["info"]["title"] == "ComfyUI API"


async def test_the_docs_page_loads_nothing_from_elsewhere(client):
    page = await client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(links) == 3
    for link in links:
        assert link.startswith("/docs/")
        assert (await client.get(link)).status_code == 200
    assert "'/openapi.json'" in page.text


async def test_head_answers_as_get_without_a_body(client):
    for path in ["/queue", f"/history/{UNKNOWN}", "/openapi.json", "/docs"]:
        head, get = await client.head(path), await client.get(path)
        assert (head.status_code, head.headers["content-length"]) == (200, get.headers["content-length"])
    # Its uptime has as many digits as it happens to have.
    stats = await client.head("/system_stats")
    assert (stats.status_code, stats.content) == (200, b"")


async def test_answers_are_ascii_so_that_no_reader_can_mistake_their_encoding(client, scheduler, example):
    example["prompt"]["2"]["inputs"]["text"] = "ein schöner 猫"
    job_id = await queued(client, example)
    response = await client.get(f"/history/{job_id}")
    assert response.content.isascii()
    assert json.loads(response.content)[job_id]["prompt"][2]["2"]["inputs"]["text"] == "ein schöner 猫"
