"""Queue, history and jobs in ComfyUI's format, and which dialect a root route speaks."""

from __future__ import annotations

from unittest.mock import ANY

import httpx
import pytest

from serve_app.api.app import create_app

JOB, OTHER, THIRD = (f"550e8400-e29b-41d4-a716-44665544000{i}" for i in range(3))
SHOWN = {"images": [{"filename": "a_00001_.png", "subfolder": "", "type": "output"}]}
FAILURE = {
    "node": "3",
    "class_type": "KSampler",
    "exception_type": "ValueError",
    "message": "too hot",
    "traceback": ["line\n"],
}


@pytest.fixture
def submit(client, example):
    async def submit(job_id: str, **keys) -> None:
        response = await client.post("/api/prompt", json={**example, "prompt_id": job_id, **keys})
        assert response.status_code == 200

    return submit


async def get(client, path: str, **query):
    return (await client.get(path, params=query)).json()


# Queue ----------------------------------------------------------------------------------------------------------------


async def test_the_queue_has_a_job_as_its_five_members(client, replica, scheduler, submit):
    await submit(JOB, extra_data={"x": 1, "api_key_comfy_org": "secret"})
    await submit(OTHER)
    await replica.start(JOB)
    queue = await get(client, "/api/queue")
    [[number, job_id, prompt, extra, outputs]] = queue["queue_running"]
    assert (number, job_id, prompt, outputs) == (0, JOB, (await scheduler.job(JOB)).prompt, ["6"])
    created = int((await scheduler.job(JOB)).created_s * 1000)
    assert extra == {"x": 1, "client_id": "client-001", "create_time": created, "request_id": ANY}
    assert [item[1] for item in queue["queue_pending"]] == [OTHER]


@pytest.mark.parametrize("body", [{"clear": True}, {"delete": [OTHER, "unknown"]}])
async def test_waiting_jobs_are_deleted_and_running_ones_are_not(client, replica, scheduler, submit, body):
    await submit(JOB)
    await submit(OTHER)
    await replica.start(JOB)
    response = await client.post("/api/queue", json=body)
    assert (response.status_code, response.content) == (200, b"")
    assert ((await scheduler.job(JOB)).state, (await scheduler.job(OTHER)).state) == ("running", "cancelled")


@pytest.mark.parametrize(
    "body", [b"", b'{"prompt_id": "%s"}' % JOB.encode(), b'{"prompt_id": ""}', b'{"prompt_id": 7}']
)
async def test_an_interrupt_stops_what_runs(client, replica, scheduler, submit, body):
    await submit(JOB)
    await submit(OTHER)
    await replica.start(JOB)
    response = await client.post("/api/interrupt", content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.content) == (200, b"")
    assert ((await scheduler.job(JOB)).state, (await scheduler.job(OTHER)).state) == ("cancelled", "queued")


async def test_an_interrupt_of_a_job_that_waits_does_nothing(client, scheduler, submit):
    await submit(JOB)
    await client.post("/api/interrupt", json={"prompt_id": JOB})
    assert (await scheduler.job(JOB)).state == "queued"


# History --------------------------------------------------------------------------------------------------------------


async def test_a_job_is_in_the_history_from_its_end_on(client, replica, submit):
    await submit(JOB)
    await replica.cached(JOB, ["1"])
    await replica.start(JOB)
    assert await get(client, f"/api/history/{JOB}") == {} == await get(client, "/api/history")
    await replica.succeed(JOB, {"6": SHOWN})
    entry = (await get(client, f"/api/history/{JOB}"))[JOB]
    assert entry["prompt"][1] == JOB
    assert entry["outputs"] == {"6": SHOWN}
    assert entry["meta"] == {"6": {"node_id": "6", "display_node": "6", "parent_node": None, "real_node_id": "6"}}
    assert (entry["status"]["status_str"], entry["status"]["completed"]) == ("success", True)
    messages = entry["status"]["messages"]
    assert [name for name, _ in messages] == ["execution_start", "execution_cached", "execution_success"]
    assert messages[1][1]["nodes"] == ["1"]
    assert all(data["prompt_id"] == JOB and isinstance(data["timestamp"], int) for _, data in messages)
    assert await get(client, "/api/history") == {JOB: entry}


async def test_a_failure_in_the_history_is_that_of_the_error_event(client, replica, submit):
    await submit(JOB)
    await replica.start(JOB)
    await replica.fail(JOB, FAILURE)
    status = (await get(client, f"/api/history/{JOB}"))[JOB]["status"]
    assert (status["status_str"], status["completed"]) == ("error", False)
    name, data = status["messages"][-1]
    assert name == "execution_error"
    assert (data["node_id"], data["node_type"]) == ("3", "KSampler")
    assert (data["exception_type"], data["exception_message"]) == ("ValueError", "too hot\n")


async def test_an_interrupted_job_is_in_the_history_and_a_withdrawn_one_is_not(client, replica, submit):
    await submit(JOB)
    await submit(OTHER)
    await replica.start(JOB)
    await client.post("/api/interrupt")
    await client.post("/api/queue", json={"clear": True})
    history = await get(client, "/api/history")
    assert list(history) == [JOB]
    assert history[JOB]["status"]["status_str"] == "error"
    assert history[JOB]["status"]["messages"][-1][0] == "execution_interrupted"
    assert await get(client, f"/api/history/{OTHER}") == {}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, "012"),
        ({"max_items": 2}, "12"),
        ({"max_items": 2, "offset": 0}, "01"),
        ({"max_items": 1, "offset": 1}, "1"),
        ({"offset": 1}, "12"),
        ({"offset": 3}, ""),
        ({"max_items": 5, "offset": 100}, ""),
        ({"max_items": 5, "offset": -1}, "012"),
    ],
)
async def test_the_history_is_a_window_of_ended_jobs_oldest_first(client, replica, submit, query, expected):
    for job_id in (JOB, OTHER, THIRD):
        await submit(job_id)
        await replica.succeed(job_id, {"6": SHOWN})
    assert "".join(job_id[-1] for job_id in await get(client, "/api/history", **query)) == expected


@pytest.mark.parametrize(("body", "left"), [({"clear": True}, []), ({"delete": [JOB, "unknown"]}, [OTHER])])
async def test_history_can_be_forgotten(client, replica, submit, body, left):
    for job_id in (JOB, OTHER):
        await submit(job_id)
        await replica.succeed(job_id, {})
    response = await client.post("/api/history", json=body)
    assert (response.status_code, response.content) == (200, b"")
    assert list(await get(client, "/api/history")) == left


@pytest.mark.parametrize("path", ["/api/history/unknown", f"/api/history/{JOB}"])
async def test_an_unknown_id_has_an_empty_history(client, path):
    assert await get(client, path) == {}


# Jobs -----------------------------------------------------------------------------------------------------------------


async def test_the_page_gets_the_members_its_schema_wants(client, replica, submit):
    await submit(JOB, extra_data={"extra_pnginfo": {"workflow": {"id": "w-1"}}})
    await replica.start(JOB)
    await replica.succeed(JOB, {"6": SHOWN})
    answer = await get(client, "/api/jobs", status="completed,failed,cancelled", limit=64, offset=0)
    assert answer["pagination"] == {"offset": 0, "limit": 64, "total": 1, "has_more": False}
    [job] = answer["jobs"]
    assert (job["id"], job["status"], job["priority"], job["workflow_id"]) == (JOB, "completed", 0, "w-1")
    assert all(isinstance(job[name], int) for name in ("create_time", "execution_start_time", "execution_end_time"))
    assert job["preview_output"] == {**SHOWN["images"][0], "nodeId": "6", "mediaType": "images"}
    assert (job["outputs_count"], job["previewable_outputs_count"]) == (1, 1)
    assert None not in job.values()


async def test_pictures_that_are_saved_stand_for_a_job_before_any_other_output(client, replica, submit, example):
    example["prompt"]["7"] = example["prompt"]["6"]
    await submit(JOB)
    temp = {"filename": "t.png", "subfolder": "", "type": "temp"}
    await replica.succeed(JOB, {"7": {"text": ["words"], "images": [temp]}, "6": SHOWN})
    [job] = (await get(client, "/api/jobs"))["jobs"]
    assert job["preview_output"]["filename"] == "a_00001_.png"
    assert (job["outputs_count"], job["previewable_outputs_count"]) == (2, 2)


def saved(name: str, **members: str) -> dict[str, str]:
    return {"filename": name, "subfolder": "", "type": "output", **members}


@pytest.mark.parametrize(
    ("shown", "counts", "previewed"),
    [
        ({"audio": [saved("a.flac")]}, (1, 1), "a.flac"),
        ({"gifs": [saved("a.mp4", format="video/h264-mp4")]}, (1, 1), "a.mp4"),
        ({"result": ["mesh.GLB", None, {"camera": 1}]}, (2, 1), "mesh.GLB"),
        ({"files": [saved("a.md")], "images": [saved("a.png")]}, (2, 2), "a.png"),
        ({"text": ["words"], "files": [saved("a.txt")]}, (1, 1), "a.txt"),
        ({"latents": [saved("a.latent")]}, (1, 0), None),
        ({"animated": [True], "images": [saved("a.webp")]}, (1, 1), "a.webp"),
    ],
)
async def test_the_thumbnail_of_a_job_follows_from_its_outputs_kind_and_file(
    client, replica, submit, shown, counts, previewed
):
    await submit(JOB)
    await replica.succeed(JOB, {"6": shown})
    [job] = (await get(client, "/api/jobs"))["jobs"]
    assert (job["outputs_count"], job["previewable_outputs_count"]) == counts
    assert job.get("preview_output", {}).get("filename") == previewed


async def test_a_text_stands_for_a_job_that_has_nothing_else_and_is_cut_short(client, replica, submit):
    await submit(JOB)
    await replica.succeed(JOB, {"6": {"text": ["w" * 2000]}})
    [job] = (await get(client, "/api/jobs"))["jobs"]
    assert (job["outputs_count"], job["previewable_outputs_count"]) == (0, 0)
    assert job["preview_output"] == {"content": "w" * 1024, "truncated": True, "nodeId": "6", "mediaType": "text"}


async def test_a_failed_job_says_why(client, replica, submit):
    await submit(JOB)
    await replica.start(JOB)
    await replica.fail(JOB, FAILURE)
    [job] = (await get(client, "/api/jobs", status="failed"))["jobs"]
    error = job["execution_error"]
    assert {name: error[name] for name in ("node_id", "node_type", "exception_message", "exception_type")} == {
        "node_id": "3",
        "node_type": "KSampler",
        "exception_message": "too hot\n",
        "exception_type": "ValueError",
    }
    assert error["traceback"] == ["line\n"]


async def test_jobs_are_listed_by_state_order_and_window(client, replica, submit):
    for job_id in (JOB, OTHER, THIRD):
        await submit(job_id)
    await replica.start(JOB)
    listed = await get(client, "/api/jobs", status="in_progress,pending", sort_order="asc", limit=2)
    assert [(job["id"], job["status"]) for job in listed["jobs"]] == [(JOB, "in_progress"), (OTHER, "pending")]
    assert listed["pagination"] == {"offset": 0, "limit": 2, "total": 3, "has_more": True}
    assert [job["id"] for job in (await get(client, "/api/jobs", offset=2))["jobs"]] == [JOB]


@pytest.mark.parametrize("query", ["status=lost", "limit=0", "limit=x", "offset=x", "sort_by=size", "sort_order=up"])
async def test_a_list_that_cannot_be_made_is_400_with_a_sentence(client, query):
    response = await client.get(f"/api/jobs?{query}")
    assert response.status_code == 400
    assert query.partition("=")[0] in response.json()["error"]


async def test_one_job_comes_with_its_outputs_and_workflow(client, replica, scheduler, submit):
    await submit(JOB)
    waiting = await get(client, f"/api/jobs/{JOB}")
    assert waiting["workflow"]["prompt"] == (await scheduler.job(JOB)).prompt
    assert "outputs" not in waiting
    await replica.succeed(JOB, {"6": SHOWN})
    assert (await get(client, f"/api/jobs/{JOB}"))["outputs"] == {"6": SHOWN}
    missing = await client.get(f"/api/jobs/{OTHER}")
    assert (missing.status_code, missing.json()) == (404, {"error": "Job not found"})


async def test_jobs_are_cancelled_one_by_one_or_many(client, scheduler, submit):
    for job_id in (JOB, OTHER):
        await submit(job_id)
    assert (await client.post(f"/api/jobs/{JOB}/cancel")).json() == {"cancelled": True}
    assert (await client.post(f"/api/jobs/{JOB}/cancel")).json() == {"cancelled": False}
    assert (await client.post("/api/jobs/cancel", json={"job_ids": [JOB, OTHER]})).json() == {"cancelled": True}
    assert (await client.post("/api/jobs/cancel", json={"job_ids": []})).json() == {"cancelled": False}


@pytest.mark.parametrize("given", [None, "all", {JOB: 1}])
async def test_jobs_to_cancel_that_are_no_list_are_refused(client, given):
    assert (await client.post("/api/jobs/cancel", json={"job_ids": given})).status_code == 400


async def test_ids_that_no_job_can_have_are_named_and_nothing_is_cancelled(client, submit):
    await submit(JOB)
    answer = await client.post("/api/jobs/cancel", json={"job_ids": [JOB, "unknown", 7]})
    assert (answer.status_code, answer.json()["invalid_ids"]) == (400, ["unknown", 7])
    assert [job["status"] for job in (await get(client, "/api/jobs"))["jobs"]] == ["pending"]


# Dialects -------------------------------------------------------------------------------------------------------------


async def test_the_root_speaks_the_contract_unless_the_request_asks_for_comfyui(client, submit):
    await submit(JOB)
    assert (await get(client, "/queue"))["queue_running"] is None
    native = (await client.get("/queue", headers={"X-Comfy-Dialect": "comfy"})).json()
    assert native["queue_running"] == []
    assert [item[1] for item in native["queue_pending"]] == [JOB]


async def test_the_root_can_be_comfyuis_and_a_request_ask_for_the_contract(service, example):
    transport = httpx.ASGITransport(app=create_app(service, "comfy"))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.post("/prompt", json={**example, "unknown": 1})
        assert answer.json()["node_errors"] == {}
        assert (await client.get("/history/x")).json() == {}
        assert (await client.get("/queue")).json()["queue_pending"][0][1] == answer.json()["prompt_id"]
        assert (await client.post("/prompt", json={})).json()["error"]["type"] == "no_prompt"
        contract = await client.get("/queue", headers={"X-Comfy-Dialect": "contract"})
        assert contract.json()["queue_running"] is None
        assert (await client.get("/status")).status_code == 200
        assert (await client.get("/docs")).status_code == 200


@pytest.mark.parametrize("path", ["/object_info", "/models", "/features", "/embeddings", "/history", "/users"])
async def test_what_only_comfyui_has_is_at_the_root_too(client, path):
    assert (await client.get(path)).json() == (await client.get(f"/api{path}")).json()


async def test_an_unknown_native_route_is_an_empty_404(client):
    response = await client.get("/api/manager/version")
    assert (response.status_code, response.content) == (404, b"")


# Deletion -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("root", ["", "/api"])
async def test_a_job_is_deleted_once_it_has_ended_and_no_sooner(client, replica, submit, root):
    await submit(JOB)
    for _ in ("while it waits", "while it runs"):
        refused = await client.delete(f"{root}/jobs/{JOB}")
        assert refused.status_code == 409
        assert "has not ended" in refused.text
        if not replica.running:
            await replica.start(JOB)
    await replica.succeed(JOB, {"6": SHOWN})
    assert (await client.delete(f"{root}/jobs/{JOB}")).json() == {"deleted": True}
    again = await client.delete(f"{root}/jobs/{JOB}")
    assert again.status_code == 404
    assert (await client.delete(f"{root}/jobs/none")).status_code == 404
    assert (await get(client, f"/history/{JOB}")) == {}
    error = again.json()["error"]
    assert error == "Job not found" if not root else error["type"] == "job_not_found"


async def test_the_history_deletes_jobs_with_their_files_if_requested(client, replica, submit):
    for job_id in (JOB, OTHER, THIRD):
        await submit(job_id)
        await replica.succeed(job_id, {"6": SHOWN})
    answer = await client.post("/api/history", json={"delete": [JOB, "unknown"], "delete_files": True})
    assert (answer.status_code, answer.content) == (200, b"")
    assert [*await get(client, "/api/history")] == [OTHER, THIRD]
    await client.post("/api/history", json={"clear": True, "delete_files": True})
    assert await get(client, "/api/history") == {}
