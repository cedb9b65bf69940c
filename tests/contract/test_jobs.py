"""A job over the contract's routes on a real server: submitted, watched, finished, cancelled, refused."""

from __future__ import annotations

import io
import json
import time
import uuid

import httpx
import jsonschema
import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from serve_app.events import ENDINGS
from tests.cluster.server import Server, txt2img, wait_for
from tests.unit.api.conftest import DOCUMENT


def assert_fits(answer: object, schema: str) -> None:
    """Check an answer against one of the document's schemas."""
    document = {"$ref": f"#/components/schemas/{schema}", "components": DOCUMENT["components"]}
    jsonschema.validate(answer, document)


def events(server: Server, job_id: str) -> list[dict]:
    """Follow a job's events to the last."""
    found: list[dict] = []
    while not found or found[-1]["kind"] not in ENDINGS:
        after = found[-1]["seq"] if found else 0
        found += server.get(f"/jobs/{job_id}/events", after=after, timeout_s=5)["events"]
    return found


def test_the_contracts_own_example_makes_an_image(server: Server, example):
    answer = server.http.post("/prompt", json=example).json()
    assert_fits(answer, "PromptResponse")
    job_id = answer["prompt_id"]
    accepted = server.get(f"/history/{job_id}")[job_id]
    assert_fits(accepted, "ExecutionResult")

    entry = server.finished(job_id)

    assert_fits(entry, "ExecutionResult")
    assert entry["status"] == {"status_code": 100, "completed": True, "status_str": "success", "messages": []}
    [shown] = entry["outputs"]["6"]["images"]
    assert shown["filename"].startswith("output_")
    image = Image.open(io.BytesIO(server.http.get("/view", params=shown).content))
    assert image.size == (512, 512)
    assert json.loads(image.info["prompt"])["3"]["inputs"]["seed"] == 12345
    # What a client sees is neither empty nor flat.
    assert np.ptp(np.asarray(image.convert("RGB")).astype(int), axis=(0, 1)).max() > 50


def test_a_running_job_is_in_the_queue_and_its_history_counts_up(server: Server):
    job_id = server.submit(txt2img(1, steps=150, side=192))
    seen = []

    def ended() -> bool:
        entry = server.get(f"/history/{job_id}")[job_id]
        seen.append((entry["status"]["status_str"], entry["status"]["status_code"]))
        return entry["status"]["completed"]

    wait_for(lambda: server.get("/queue")["queue_running"] == job_id, "the job in the queue")
    assert server.get("/queue")["running"] == [job_id]
    assert_fits(server.get("/queue"), "QueueStatus")
    wait_for(ended, "the job's end")
    percents = [percent for _, percent in seen]
    assert percents == sorted(percents)
    assert {percent for state, percent in seen if state != "success"} <= set(range(100))
    assert any(0 < percent < 100 for percent in percents)
    assert seen[-1] == ("success", 100)
    assert server.get("/queue") == {"queue_pending": [], "queue_running": None, "running": []}


def test_the_event_stream_has_every_event_of_a_job_in_order(server: Server):
    job_id = server.submit(txt2img(2, steps=8, text="a story"))
    story = events(server, job_id)
    kinds = [event["kind"] for event in story]
    assert kinds[0] == "queued"
    assert [kind for kind in kinds if kind not in {"progress", "executing", "finished"}] == [
        "queued",
        "started",
        "cached",
        "executed",
        "success",
    ]
    assert [event["seq"] for event in story] == sorted({event["seq"] for event in story})
    steps = [e["data"]["value"] for e in story if e["kind"] == "progress" and e["data"]["node"] == "3"]
    assert steps == sorted(set(steps))
    assert {e["data"]["node"] for e in story if e["kind"] == "executing"} == {"1", "2", "3", "4", "5", "6"} - set(
        next(e["data"]["nodes"] for e in story if e["kind"] == "cached")
    )


def test_equal_work_is_not_done_again(server: Server):
    first = server.finished(server.submit(txt2img(3)))
    again = server.submit(txt2img(3))
    assert server.finished(again)["outputs"] == first["outputs"]
    assert [e["kind"] for e in events(server, again)] == ["queued", "started", "cached", "executed", "success"]


def test_the_same_prompt_id_is_one_job(server: Server):
    prompt_id = str(uuid.uuid4())
    body = {"prompt": txt2img(4), "prompt_id": prompt_id}
    answers = [server.http.post("/prompt", json=body).json() for _ in range(3)]
    assert answers[0]["prompt_id"] == prompt_id
    assert answers == [answers[0]] * 3
    server.finished(prompt_id)
    assert server.http.post("/prompt", json=body).json() == answers[0]


def test_a_cancelled_job_stops_at_once_and_says_so(server: Server):
    job_id = server.submit(txt2img(5, steps=10_000))
    wait_for(lambda: any(e["kind"] == "progress" for e in server.get(f"/jobs/{job_id}/events")["events"]), "sampling")
    assert server.http.post(f"/jobs/{job_id}/cancel").json() == {"cancelled": True}
    status = server.get(f"/history/{job_id}")[job_id]["status"]
    assert (status["completed"], status["status_str"]) == (False, "cancelled")
    assert status["messages"] == ["the job was cancelled"]
    # Its slot and its rows in the batch are free again.
    wait_for(lambda: [one["running"] for one in server.get("/status")["replicas"]] == [0], "the replica to let go")
    assert server.http.post(f"/jobs/{job_id}/cancel").json() == {"cancelled": False}
    assert server.finished(server.submit(txt2img(6)))["status"]["completed"]


def test_a_node_that_fails_ends_its_job_with_the_reason(server: Server):
    broken = server.root / "models" / "checkpoints" / "broken.safetensors"
    # It begins as a model does, and lacks the rest.
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1)}, broken)
    try:
        prompt = txt2img(7)
        prompt["1"]["inputs"]["ckpt_name"] = broken.name
        status = server.finished(server.submit(prompt))["status"]
    finally:
        broken.unlink()
    assert (status["completed"], status["status_str"]) == (False, "error")
    [message] = status["messages"]
    assert "ModelFileError" in message
    assert broken.name in message


def test_a_file_that_is_no_model_is_refused_before_its_job_is_accepted(server: Server):
    broken = server.root / "models" / "checkpoints" / "none.safetensors"
    broken.write_bytes(b"not a model")
    try:
        prompt = txt2img(7)
        prompt["1"]["inputs"]["ckpt_name"] = broken.name
        response = server.http.post("/prompt", json={"prompt": prompt})
    finally:
        broken.unlink()
    assert response.status_code == 400
    assert_fits(response.json(), "ErrorResponse")
    assert "ckpt_name 'none.safetensors' is no safetensors file" in response.json()["detail"]


def test_a_bad_graph_is_refused_with_every_problem(server: Server):
    prompt = txt2img(8)
    prompt["3"]["inputs"] |= {"sampler_name": "eular", "steps": 0, "latent_image": ["99", 0]}
    prompt["2"]["class_type"] = "CLIPTextEncod"
    del prompt["4"]["inputs"]["width"]
    response = server.http.post("/prompt", json={"prompt": prompt})
    assert response.status_code == 400
    answer = response.json()
    assert_fits(answer, "ErrorResponse")
    assert answer["status_code"] == 400
    for expected in ("eular", "did you mean 'euler'", "steps", "99", "CLIPTextEncod"):
        assert expected in answer["detail"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"prompt": {}}', b'{"prompt": {}, "x": 1}', b"\xff\xfe"])
def test_a_bad_body_is_400_with_the_contracts_error(server: Server, body):
    response = server.http.post("/prompt", content=body)
    assert response.status_code == 400
    assert_fits(response.json(), "ErrorResponse")


def test_a_body_over_the_limit_is_413_and_the_server_goes_on(server: Server):
    def pieces():
        for _ in range(25):
            yield b" " * 1_000_000

    for content in (b" " * 21_000_000, pieces()):
        try:
            response = server.http.post("/prompt", content=content)
        except httpx.WriteError:
            # The answer may come, and the connection go, before the client has sent everything.
            continue
        assert response.status_code == 413
        assert_fits(response.json(), "ErrorResponse")
    assert server.http.get("/queue").status_code == 200


def test_system_stats_are_this_machines(server: Server):
    stats = server.get("/system_stats")
    assert_fits(stats, "SystemStats")
    assert stats["ram"]["total"] == psutil.virtual_memory().total // 2**20
    time.sleep(0.01)
    assert server.get("/system_stats")["uptime"] > stats["uptime"] > 0
