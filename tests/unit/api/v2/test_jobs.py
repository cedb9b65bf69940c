"""Jobs of Comfy API v2 over the real scheduler and an empty database."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime
from typing import Any

import httpx
import pytest

from serve_app.api.app import create_app
from serve_app.api.concurrency_limits import ConcurrencyLimits
from serve_app.errors import DatabaseAwayError, DrainingError, NotReadyError, QueueFullError, UnavailableError
from serve_app.store.retention.rules import RetentionBounds, RetentionRules

UNKNOWN = "550e8400-e29b-41d4-a716-446655440000"


async def create(client: httpx.AsyncClient, example: dict[str, Any], key: str | None = None, **members: Any) -> Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    return await client.post("/api/v2/jobs", json={"workflow": example["prompt"], **members}, headers=headers)


async def created(client: httpx.AsyncClient, example: dict[str, Any], **members: Any) -> str:
    answer = await create(client, example, **members)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def code(answer: httpx.Response) -> tuple[int, str]:
    error = answer.json()["error"]
    assert error.keys() == {"code", "message", "details"}
    return answer.status_code, error["code"]


async def test_a_job_can_be_read_from_queue_to_success(client, replica, example):
    answer = await create(client, example, metadata={"client": "acme"})
    job = answer.json()
    assert (answer.status_code, job["status"], job["queue_position"]) == (201, "queued", 1)
    assert job["metadata"] == {"client": "acme"}
    assert job["created_at"].endswith("Z")
    assert (job["started_at"], job["progress"], job["error"], job["outputs"]) == (None, None, None, [])
    uuid.UUID(answer.headers["X-Comfy-Request-Id"])

    await replica.start(job["id"])
    await replica.executing(job["id"], "3")
    await replica.progress(job["id"], "3", 10, 20)
    running = (await client.get(job["urls"]["self"])).json()
    assert (running["status"], running["queue_position"]) == ("running", None)
    assert running["progress"] == {
        "value": 0.4,
        "nodes_done": 0,
        "nodes_total": 6,
        "current_node": "3",
        "current_node_class": "KSampler",
        "step": 10,
        "steps": 20,
        "message": "KSampler 10/20",
        "seconds_left": None,
    }
    await replica.progress(job["id"], "3", 15, 20)
    assert (await client.get(job["urls"]["self"])).json()["progress"]["seconds_left"] >= 0
    await replica.succeed(job["id"], {})
    ended = (await client.get(job["urls"]["self"])).json()
    assert (ended["status"], ended["progress"], ended["metadata"]) == ("succeeded", None, {"client": "acme"})
    assert ended["metrics"]["execution_ms"] >= 0


async def test_a_job_says_until_when_it_is_kept(client, service, replica, example):
    job_id = await created(client, example)
    await replica.succeed(job_id, {})

    async def kept_s() -> float:
        job = (await client.get(f"/api/v2/jobs/{job_id}")).json()
        ended, expires = (datetime.fromisoformat(job[name]) for name in ("completed_at", "expires_at"))
        return (expires - ended).total_seconds()

    assert await kept_s() == pytest.approx(365 * 86_400, abs=60)
    service.limits = replace(service.limits, retention=RetentionRules({"history": RetentionBounds(age_s=60.0)}))
    assert await kept_s() == pytest.approx(60.0)


async def test_positions_count_from_the_job_that_starts_next(client, example):
    first, second = await created(client, example), await created(client, example)
    positions = [(await client.get(f"/api/v2/jobs/{job_id}")).json()["queue_position"] for job_id in (first, second)]
    assert positions == [1, 2]


async def test_one_job_is_the_same_in_every_dialect(client, example):
    job_id = await created(client, example)
    assert job_id in (await client.get(f"/history/{job_id}")).json()
    native = (await client.post("/prompt", json=example)).json()["prompt_id"]
    assert (await client.get(f"/api/v2/jobs/{native}")).json()["status"] == "queued"


async def test_the_workflow_is_returned_as_it_runs(client, example):
    job_id = await created(client, example)
    answer = (await client.get(f"/api/v2/jobs/{job_id}/workflow")).json()
    assert answer["format"] == "api"
    assert answer["workflow"]["3"]["class_type"] == "KSampler"


async def test_a_failure_says_where_and_why(client, replica, example):
    job_id = await created(client, example)
    await replica.fail(
        job_id,
        {
            "node": "3",
            "class_type": "KSampler",
            "exception_type": "ValueError",
            "message": "no",
            "traceback": ("a", "b"),
        },
    )
    job = (await client.get(f"/api/v2/jobs/{job_id}")).json()
    assert job["status"] == "failed"
    assert job["error"] == {
        "code": "node_execution_error",
        "message": "ValueError: no",
        "node_id": "3",
        "class_type": "KSampler",
        "traceback": "ab",
    }


async def test_a_waiting_and_a_running_job_are_cancelled_once_and_an_ended_one_stays(client, replica, example):
    running, waiting = await created(client, example), await created(client, example)
    await replica.start(running)
    for job_id in (waiting, running, running):
        answer = await client.post(f"/api/v2/jobs/{job_id}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "canceled")


async def test_credentials_are_never_returned(client, example):
    job_id = await created(client, example, extra_data={"api_key_comfy_org": "comfyui-secret"})
    for path in ("", "/workflow"):
        assert "secret" not in (await client.get(f"/api/v2/jobs/{job_id}{path}")).text


# Idempotency keys --------------------------------------------------------------------------------------------------


async def test_a_key_is_used_once_whatever_the_second_body_is(client, replica, example):
    await create(client, example, "k")
    other = {**example, "prompt": {**example["prompt"]}}
    for body in (example, other):
        assert code(await create(client, body, "k")) == (422, "idempotency_key_reuse")
    assert len(await replica.jobs()) == 1


async def test_of_two_at_once_with_a_key_one_is_a_job(client, replica, example):
    answers = await asyncio.gather(*(create(client, example, "k") for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [201] + [422] * 7
    assert len(await replica.jobs()) == 1


async def test_a_key_whose_workflow_was_refused_is_free(client, example):
    wrong = {"prompt": {"1": {"class_type": "Missing", "inputs": {}}}}
    assert code(await create(client, wrong, "k")) == (422, "invalid_workflow")
    assert (await create(client, example, "k")).status_code == 201


async def test_other_jobs_of_a_batch_are_accepted_when_one_idempotency_key_is_refused(client, replica, example):
    await create(client, example, "k")
    answers = await asyncio.gather(*(create(client, example, key) for key in ("k", None, "l", "k", None)))
    assert [answer.status_code for answer in answers] == [422, 201, 201, 422, 201]
    assert len(await replica.jobs()) == 4


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb"])
async def test_a_key_has_1_to_255_printable_characters(client, example, key):
    assert code(await create(client, example, key)) == (400, "invalid_request")


# Refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, (422, "invalid_workflow")),
        ({"workflow": []}, (422, "invalid_workflow")),
        ({"workflow": {}}, (422, "invalid_workflow")),
        ({"workflow": {"nodes": [], "links": []}}, (422, "workflow_format_ui")),
        ({"workflow": {}, "webhook_url": "https://example.org"}, (422, "invalid_workflow")),
        ({"workflow": {}, "inputs": {}}, (422, "invalid_workflow")),
        ({"workflow": {}, "client_id": "x"}, (400, "invalid_request")),
        ({"workflow": {}, "extra_data": None}, (400, "invalid_request")),
        ({"workflow": {}, "extra_data": {"other": "x"}}, (400, "invalid_request")),
        ({"workflow": {}, "extra_data": {"api_key_comfy_org": None}}, (400, "invalid_request")),
        ({"workflow": {}, "metadata": "label"}, (422, "metadata_invalid")),
        ({"workflow": {}, "metadata": {"k": 1}}, (422, "metadata_invalid")),
        ({"workflow": {}, "metadata": {"": "v"}}, (422, "metadata_invalid")),
        ({"workflow": {}, "metadata": {"k" * 41: "v"}}, (422, "metadata_invalid")),
        ({"workflow": {}, "metadata": {"k": "é" * 129}}, (422, "metadata_invalid")),
        ({"workflow": {}, "metadata": {"k": "a\u202eb"}}, (422, "metadata_invalid")),
        ({"workflow": {}, "metadata": {str(i): "" for i in range(17)}}, (422, "metadata_invalid")),
    ],
)
async def test_a_body_that_is_wrong_is_refused_by_its_code(client, body, expected):
    assert code(await client.post("/api/v2/jobs", json=body)) == expected


async def test_every_wrong_node_is_named(client, example):
    prompt = {**example["prompt"], "3": {"class_type": "KSampler", "inputs": {}}}
    answer = await client.post("/api/v2/jobs", json={"workflow": prompt})
    assert code(answer) == (422, "invalid_workflow")
    errors = answer.json()["error"]["details"]["node_errors"]
    assert errors["3"]["class_type"] == "KSampler"
    assert {error["type"] for error in errors["3"]["errors"]} == {"required_input_missing"}
    assert errors["3"]["dependent_outputs"] == ["6"]


async def test_what_is_no_json_or_too_large_is_refused(client):
    assert code(await client.post("/api/v2/jobs", content=b"{")) == (400, "invalid_request")
    assert code(await client.post("/api/v2/jobs", content=b"x" * 10_001)) == (413, "payload_too_large")


@pytest.mark.parametrize("path", ["", "/workflow"])
@pytest.mark.parametrize("job_id", [UNKNOWN, "no-uuid"])
async def test_an_unknown_job_is_not_found(client, path, job_id):
    assert code(await client.get(f"/api/v2/jobs/{job_id}{path}")) == (404, "not_found")
    assert code(await client.post(f"/api/v2/jobs/{job_id}/cancel")) == (404, "not_found")


async def test_routes_and_methods_that_are_not_there_are_refused_in_the_same_form(client):
    assert code(await client.get("/api/v2/nothing")) == (404, "not_found")
    answer = await client.delete("/api/v2/jobs")
    assert code(answer) == (405, "method_not_allowed")
    assert "X-Comfy-Request-Id" in answer.headers


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (QueueFullError("full", 5), (429, "queue_full")),
        (NotReadyError("starting", 2), (429, "deployment_not_ready")),
        (DrainingError("replaced", 2), (429, "deployment_not_ready")),
        (DatabaseAwayError("away", 2), (503, "upstream_unreachable")),
    ],
)
async def test_what_passes_by_itself_says_when_to_ask_again(
    client, scheduler, example, refusal: UnavailableError, expected
):
    scheduler.refusal = refusal
    answer = await create(client, example)
    assert code(answer) == expected
    assert answer.headers["Retry-After"] == str(refusal.retry_after_s)


# The list ----------------------------------------------------------------------------------------------------------


async def listed(client: httpx.AsyncClient, query: str) -> list[dict[str, Any]]:
    """Return all pages of a list in one."""
    found, cursor = [], ""
    while True:
        page = (await client.get(f"/api/v2/jobs?{query}{cursor}")).json()
        found += page["jobs"]
        if "next_cursor" not in page:
            return found
        cursor = f"&cursor={page['next_cursor']}"


async def test_a_list_has_every_job_once_newest_first_over_its_pages(client, replica, example):
    ids = [await created(client, example, metadata={"n": str(i)}) for i in range(5)]
    await client.post(f"/api/v2/jobs/{ids[1]}/cancel")
    found = await listed(client, "limit=2")
    assert [job["id"] for job in found] == ids[::-1]
    assert "next_cursor" not in (await client.get("/api/v2/jobs?limit=5")).json()
    assert [job["metadata"]["n"] for job in found] == ["4", "3", "2", "1", "0"]
    assert [job["status"] for job in found] == ["queued", "queued", "queued", "canceled", "queued"]
    assert found[0]["created_at"] == found[0]["create_time"]


async def test_a_list_is_filtered_by_every_requested_label(client, example):
    both = await created(client, example, metadata={"a": "1", "b": "x y&é"})
    await created(client, example, metadata={"a": "1"})
    await created(client, example, metadata={"b": "x y&é"})
    await created(client, example)
    query = str(httpx.QueryParams({"metadata[a]": "1", "metadata[b]": "x y&é"}))
    assert [job["id"] for job in await listed(client, query)] == [both]
    assert await listed(client, "metadata[a]=2") == []


@pytest.mark.parametrize(
    "query",
    [
        "metadata[a]=1&metadata[b]=1&metadata[c]=1&metadata[d]=1",
        "metadata[a]=1&metadata[a]=2",
        "metadata[]=1",
        "metadata[a b]=1",
        "metadata=1",
        "metadata[a]=%00",
        "metadata[a]=%E2%80%AE",
        "metadata[a]=1;limit=2",
        "metadata[a]=%zz",
        "metadata[a]=%ff",
    ],
)
async def test_a_filter_that_is_wrong_is_refused(client, query):
    answer = await client.get(httpx.URL("http://test/api/v2/jobs").copy_with(query=query.encode()))
    assert code(answer) == (400, "invalid_metadata_filter")


async def test_a_cursor_belongs_to_the_list_that_gave_it_out(client, example):
    for _ in range(2):
        await created(client, example, metadata={"a": "1"})
    cursor = (await client.get("/api/v2/jobs?limit=1&metadata[a]=1")).json()["next_cursor"]
    for wrong in (f"cursor={cursor}", "cursor=nonsense", "cursor=é", f"metadata[a]=2&cursor={cursor}"):
        assert code(await client.get(f"/api/v2/jobs?{wrong}")) == (400, "invalid_cursor")


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "limit=1&limit=2", "status=queued"])
async def test_a_parameter_that_is_wrong_is_refused(client, query):
    assert code(await client.get(f"/api/v2/jobs?{query}")) == (400, "invalid_request")


async def test_forgotten_jobs_are_in_no_list(client, replica, example):
    gone = await created(client, example, metadata={"a": "1"})
    await replica.succeed(gone, {})
    kept = await created(client, example, metadata={"a": "1"})
    await client.post("/api/history", json={"clear": True})
    assert [job["id"] for job in await listed(client, "metadata[a]=1")] == [kept]
    assert code(await client.get(f"/api/v2/jobs/{gone}")) == (404, "not_found")


# What may happen to any request ------------------------------------------------------------------------------------


async def test_a_page_of_another_site_is_refused(client):
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": "http://elsewhere.example"}
    answer = await client.post("/api/v2/jobs", json={}, headers=headers)
    assert code(answer) == (403, "forbidden_origin")


async def test_more_bodies_than_the_limit_get_a_429_with_retry_after(service):
    app = create_app(service, concurrency=ConcurrencyLimits(bodies=1))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        with app.state.concurrency.bodies.acquire():
            answer = await client.post("/api/v2/jobs", json={})
    assert code(answer) == (429, "rate_limited")
    assert int(answer.headers["Retry-After"]) > 0


async def test_what_nobody_foresaw_says_nothing_of_the_server(client, service, monkeypatch):
    async def failing(job_id: str) -> None:
        raise RuntimeError("a secret path")

    monkeypatch.setattr(service, "job", failing)
    answer = await client.get(f"/api/v2/jobs/{UNKNOWN}")
    assert code(answer) == (500, "upstream_error")
    assert "secret" not in answer.text


async def test_a_body_that_does_not_arrive_is_not_waited_for(service):
    async def slowly() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(30)

    transport = httpx.ASGITransport(app=create_app(service, concurrency=ConcurrencyLimits(body_s=0.05)))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert code(await client.post("/api/v2/jobs", content=slowly())) == (408, "request_timeout")
