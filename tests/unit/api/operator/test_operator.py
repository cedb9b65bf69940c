from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

UNKNOWN = "550e8400-e29b-41d4-a716-446655440000"


async def queued(client, example) -> str:
    return (await client.post("/prompt", json=example)).json()["prompt_id"]


async def cursors(client, job_id: str) -> list[int]:
    """Return the cursors of a job's events so far."""
    return [event["seq"] for event in (await client.get(f"/jobs/{job_id}/events")).json()["events"]]


async def test_events_past_the_cursor_come_in_order(client, replica, example):
    job_id = await queued(client, example)
    await replica.start(job_id)
    await replica.progress(job_id, "3", 1, 20)
    stream = (await client.get(f"/jobs/{job_id}/events")).json()
    assert [e["kind"] for e in stream["events"]] == ["queued", "started", "cached", "progress"]
    assert stream["events"][3]["data"] == {"node": "3", "value": 1, "max": 20}
    assert stream["last"] is False
    known = [e["seq"] for e in stream["events"]]
    assert known == sorted(set(known))
    rest = (await client.get(f"/jobs/{job_id}/events?after={known[1]}")).json()
    assert [e["seq"] for e in rest["events"]] == known[2:]


async def test_a_poll_waits_for_the_next_event(client, service, replica, example):
    job_id = await queued(client, example)
    service.limits = replace(service.limits, poll_s=60)
    [queued_at] = await cursors(client, job_id)
    poll = asyncio.create_task(client.get(f"/jobs/{job_id}/events?after={queued_at}&timeout_s=60"))
    await replica.start(job_id)
    assert (await poll).json()["events"][0]["kind"] == "started"


async def test_a_poll_that_nothing_answers_comes_back_empty_and_not_last(client, example):
    job_id = await queued(client, example)
    [queued_at] = await cursors(client, job_id)
    answer = await client.get(f"/jobs/{job_id}/events?after={queued_at}&timeout_s=0")
    assert answer.json() == {"events": [], "last": False}


async def test_the_last_event_says_so_and_so_does_a_poll_past_it(client, replica, example):
    job_id = await queued(client, example)
    await replica.succeed(job_id, {})
    assert (await client.get(f"/jobs/{job_id}/events")).json()["last"] is True
    last = (await cursors(client, job_id))[-1]
    past = await client.get(f"/jobs/{job_id}/events?after={last}&timeout_s=600")
    assert past.json() == {"events": [], "last": True}


@pytest.mark.parametrize("job_id", [UNKNOWN, "x"])
async def test_the_events_of_an_unknown_job_are_404(client, job_id):
    response = await client.get(f"/jobs/{job_id}/events")
    assert (response.status_code, response.json()["error"]) == (404, "Job not found")


@pytest.mark.parametrize("query", ["after=x", "after=-1", "after=1.5", "after=9e9", f"after={2**63}", "timeout_s=nan"])
async def test_a_cursor_or_timeout_that_is_no_number_is_400(client, example, query):
    job_id = await queued(client, example)
    response = await client.get(f"/jobs/{job_id}/events?{query}")
    assert response.status_code == 400
    assert query.partition("=")[0] in response.json()["detail"]


async def test_cancelling_an_unknown_job_changes_nothing(client):
    assert (await client.post(f"/jobs/{UNKNOWN}/cancel")).json() == {"cancelled": False}


async def test_node_classes_and_model_files_are_listed(client):
    nodes = (await client.get("/nodes")).json()
    assert list(nodes) == sorted(nodes)
    assert nodes["SaveImage"]["output_node"] is True
    assert (await client.get("/catalog")).json() == {"checkpoints": ["sd15.safetensors"]}


async def test_the_trace_of_an_unfinished_job_is_available(client, scheduler, example):
    job_id = await queued(client, example)
    answer = (await client.get(f"/status/{job_id}")).json()
    [arrived] = answer.pop("story")
    assert answer == {"job_id": job_id, "state": "queued", "percent": 0}
    assert (arrived["what"], arrived["at_s"]) == ("arrived", pytest.approx(time.time(), abs=3600))
    assert (await client.get(f"/status/{UNKNOWN}")).status_code == 404


async def test_status_counts_the_jobs(client, replica, example):
    first, _ = await queued(client, example), await queued(client, example)
    await replica.start(first)
    status = (await client.get("/status")).json()
    assert status.keys() == {
        *("hosts", "replicas", "uptime_s", "epoch", "load", "jobs", "troubles", "paused", "backoffs", "drained")
    }
    assert [host["host"] for host in status["hosts"]] == ["host"]
    busy = [(r["pool"], r["slots"], r["running"]) for r in status["replicas"]]
    assert busy == [("cpu", 0, 0), ("cpu", 1, 1)]
    assert status["epoch"] == 1
    assert (status["load"]["queued"], status["load"]["running"]) == (1, 1)
    assert status["jobs"] == {"running": 1, "pending": 1}


async def test_the_queue_and_a_pool_are_paused_and_resumed_and_clients_can_see_it(client, replica):
    assert (await client.post("/pause", json={})).json() == {"paused": ["queue"]}
    assert (await client.post("/pause", json={"pool": "cpu"})).json() == {"paused": ["queue", "pool cpu"]}
    for path in ("/queue", "/api/queue"):
        assert (await client.get(path)).headers["X-Queue-Paused"] == "queue, pool cpu"
    assert [p["kind"] for p in (await client.get("/status")).json()["paused"]] == ["queue", "pool"]
    assert (await client.post("/resume", json={})).json() == {"paused": ["pool cpu"]}
    assert (await client.post("/resume", json={"pool": "cpu"})).json() == {"paused": []}
    assert "X-Queue-Paused" not in (await client.get("/queue")).headers


async def test_a_replica_is_drained_by_name_and_status_says_so_until_that_is_undone(client, replica, example):
    await replica.start(await queued(client, example))
    name = (await client.get("/status")).json()["replicas"][0]["replica_id"]
    assert (await client.post("/drain", json={"replica": name})).json() == {"drained": [f"replica {name}"]}
    status = (await client.get("/status")).json()
    assert [each["drained"] for each in status["replicas"] if each["replica_id"] == name] == [True]
    assert ([each["name"] for each in status["drained"]], status["paused"]) == ([name], [])
    assert "X-Queue-Paused" not in (await client.get("/queue")).headers
    assert (await client.post("/undrain", json={"replica": name})).json() == {"drained": []}


@pytest.mark.parametrize(
    "body", [{}, {"replica": "nobody"}, {"host": 1}, {"pool": "cpu"}, {"replica": "a", "host": "b"}]
)
async def test_a_drain_of_nothing_there_is_is_refused(client, replica, body):
    answer = await client.post("/drain", json=body)
    assert (answer.status_code, answer.json()["error"]) == (400, "Invalid submission")


@pytest.mark.parametrize("path", ["/prompt", "/api/prompt"])
async def test_a_job_has_the_id_that_its_request_had_or_was_given(client, example, path):
    answer = await client.post(path, json=example, headers={"X-Request-ID": "shop-4711"})
    assert answer.headers["X-Request-ID"] == "shop-4711"
    job = (await client.get(f"/api/jobs/{answer.json()['prompt_id']}")).json()
    assert job["workflow"]["extra_data"]["request_id"] == "shop-4711"
    forged = {**example, "extra_data": {"request_id": "mine"}}
    answer = await client.post(path, json=forged, headers={"X-Request-ID": "two\tlines"})
    assert len(answer.headers["X-Request-ID"]) == 36
    job = (await client.get(f"/api/jobs/{answer.json()['prompt_id']}")).json()
    assert job["workflow"]["extra_data"]["request_id"] == answer.headers["X-Request-ID"]


async def test_a_submission_is_the_same_one_when_it_is_sent_again_by_another_request(client, example):
    body = {**example, "prompt_id": UNKNOWN}
    answers = [await client.post("/api/prompt", json=body) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]


async def test_owners_in_backoff_after_ending_a_replica_are_listed(client, replica, example):
    await replica.start(await queued(client, example))
    assert "X-Queue-Backoff" not in (await client.get("/queue")).headers
    [busy] = [each for each in (await client.get("/status")).json()["replicas"] if each["running"]]
    await replica.scheduler.scheduler.registry.lost(busy["replica_id"])
    for path in ("/queue", "/api/queue"):
        assert 1 <= int((await client.get(path)).headers["X-Queue-Backoff"]) <= 5
    [shown] = (await client.get("/status")).json()["backoffs"]
    assert (shown["losses"], shown["alone"]) == (1, False)
    assert 0.0 < shown["wait_s"] <= 5.0


@pytest.mark.parametrize("body", [{"pool": 1}, {"pool": ""}, {"pools": "cpu"}, {"pool": "gpx"}])
async def test_a_pause_of_nothing_there_is_is_refused(client, replica, body):
    answer = await client.post("/pause", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"] == "Invalid submission"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({}, "'models' must be a list of FOLDER/NAME"),
        ({"models": ["sd15"]}, "must be FOLDER/NAME, of checkpoints, diffusion_models, unet_gguf, vae"),
        (
            {"models": ["text_encoders/l.safetensors + t6 as flux"]},
            "there is no model 'text_encoders/t6'",
        ),
        ({"models": ["checkpoints/sd16.safetensors"]}, "did you mean 'sd15.safetensors'"),
        ({"models": ["checkpoints/sd15.safetensors"], "pool": "cpx"}, "no pool is named 'cpx'"),
        ({"models": ["checkpoints/sd15.safetensors"], "now": True}, "the body must be"),
    ],
)
async def test_what_cannot_be_loaded_ahead_is_refused_by_name(client, replica, body, why):
    answer = await client.post("/warm", json=body)
    assert (answer.status_code, why in answer.json()["detail"]) == (400, True)


async def test_models_are_loaded_ahead_in_pools_that_hold_any(client, replica):
    answer = await client.post("/warm", json={"models": ["checkpoints/sd15.safetensors"]})
    assert answer.json() == {"replicas": []}
