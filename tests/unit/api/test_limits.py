"""What one request may ask for: how large its body is, how many jobs it names, what files and settings it leaves."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import zlib

import pytest
from PIL import Image

from serve_app.store.files.store import FileRef
from serve_app.store.page import userdata

JOB, OTHER = (f"550e8400-e29b-41d4-a716-44665544000{i}" for i in range(2))
BRACKETS = b'{"a": ' + b"[" * 60_000 + b"]" * 60_000 + b"}"


async def endless(head: bytes, produced: list[int], chunks: int = 1000):
    """Yield a body without a length, and count how much of it was read."""
    yield head
    for _ in range(chunks):
        produced.append(10_000)
        yield b"x" * 10_000
        await asyncio.sleep(0)


async def test_an_upload_that_does_not_say_its_length_is_refused_as_soon_as_it_is_too_large(client, service):
    produced: list[int] = []
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = await client.post("/api/upload/image", content=endless(head, produced), headers=headers)
    assert (answer.status_code, answer.json()["error"]["type"]) == (413, "body_too_large")
    assert str(service.limits.upload_bytes) in answer.json()["error"]["details"]
    assert sum(produced) <= service.limits.upload_bytes + 10_000


@pytest.mark.parametrize("path", ["/prompt", "/api/prompt", "/api/queue", "/api/settings", "/api/userdata/a.json"])
async def test_a_body_that_does_not_say_its_length_is_refused_likewise(client, service, path):
    produced: list[int] = []
    assert (await client.post(path, content=endless(b"[", produced))).status_code == 413
    assert sum(produced) <= max(service.limits.body_bytes, service.limits.command_bytes) + 10_000


async def test_a_length_beyond_any_number_is_refused(client):
    answer = await client.post("/api/queue", content=b"", headers={"Content-Length": "9" * 5000})
    assert answer.status_code == 413


async def test_a_large_body_is_parsed_outside_the_event_loop(client, monkeypatch):
    parsed_in = []

    async def noting(function, *arguments):
        parsed_in.append(function.__name__)
        return function(*arguments)

    monkeypatch.setattr(asyncio, "to_thread", noting)
    await client.post("/api/history", content=json.dumps({"delete": ["x" * 200_000]}))
    assert parsed_in == ["parse_value"]


@pytest.mark.parametrize(
    ("path", "key"), [("/api/queue", "delete"), ("/api/history", "delete"), ("/api/jobs/cancel", "job_ids")]
)
async def test_the_error_of_a_request_for_too_many_jobs_names_the_limit(client, service, path, key):
    answer = await client.post(path, json={key: [JOB] * 1001})
    assert answer.status_code == 400
    assert "1000" in answer.text
    assert (await client.post(path, json={key: [JOB] * 1000})).status_code == 200


async def test_many_jobs_are_cancelled_in_one_call(client, scheduler, example, monkeypatch):
    for job_id in (JOB, OTHER):
        await client.post("/api/prompt", json={**example, "prompt_id": job_id})
    calls = []
    cancel_all = scheduler.cancel_all

    async def counting(*arguments):
        calls.append(arguments)
        return await cancel_all(*arguments)

    monkeypatch.setattr(scheduler, "cancel_all", counting)
    answer = await client.post("/api/jobs/cancel", json={"job_ids": [JOB, OTHER]})
    assert (answer.json(), len(calls)) == ({"cancelled": True}, 1)
    assert {(await scheduler.job(job_id)).state for job_id in (JOB, OTHER)} == {"cancelled"}


@pytest.mark.parametrize("path", ["/api/prompt", "/status"])
async def test_counting_jobs_fetches_no_prompt(client, scheduler, example, monkeypatch, path):
    await client.post("/api/prompt", json=example)

    async def whole():
        raise AssertionError("whole prompts were asked for")

    counted = (await client.get(path)).json()
    alike = ("exec_info", "jobs")  # the rest of a status changes with time
    count = scheduler.count

    async def counts(tenant):
        monkeypatch.undo()
        return await count(tenant)

    monkeypatch.setattr(scheduler, "count", counts)
    monkeypatch.setattr(scheduler, "queue", whole)
    again = (await client.get(path)).json()
    assert [again.get(name) for name in alike] == [counted.get(name) for name in alike]
    assert counted.get("jobs", {"pending": 1, "running": 0}) == {"pending": 1, "running": 0}


# Settings and files ---------------------------------------------------------------------------------------------------


async def test_settings_nested_beyond_reading_are_refused_and_survived(client, tmp_path):
    await client.post("/api/settings", json={"a": 1})
    for answer in (
        await client.post("/api/settings", content=BRACKETS),
        await client.post("/api/settings/a", content=BRACKETS),
        await client.post("/api/userdata/comfy.settings.json", content=BRACKETS[:10_000]),
        await client.post("/api/userdata/comfy.settings.json", content=b"[1]"),
    ):
        assert answer.status_code == 400
    assert (await client.get("/api/settings")).json() == {"a": 1}
    (tmp_path / "user" / "default" / "comfy.settings.json").write_bytes(BRACKETS)
    assert (await client.get("/api/settings")).json() == {}
    assert (await client.post("/api/settings", json={"b": 2})).status_code == 200
    assert (await client.get("/api/settings")).json() == {"b": 2}


async def test_settings_grow_to_a_limit_only(client, monkeypatch):
    monkeypatch.setattr(userdata, "SETTINGS_BYTES", 100)
    assert (await client.post("/api/settings/a", content=json.dumps("x" * 50))).status_code == 200
    answer = await client.post("/api/settings/b", content=json.dumps("x" * 50))
    assert (answer.status_code, "100" in answer.text) == (400, True)


async def test_a_name_longer_than_the_file_system_takes_is_a_bad_request(client):
    name = "n" * 300
    form = {"image": (f"{name}.png", b"data")}
    assert (await client.post("/api/upload/image", files=form)).status_code == 400
    form = {"image": ("a.png", b"data")}
    assert (await client.post("/api/upload/image", files=form, data={"subfolder": name})).status_code == 400
    await client.post("/api/userdata/a.json", content=b"1")
    assert (await client.post(f"/api/userdata/{name}", content=b"1")).status_code == 400
    assert (await client.post(f"/api/userdata/a.json/move/{name}")).status_code == 400
    assert (await client.post(f"/api/userdata/a.json/move/{name}/b")).status_code == 400
    assert (await client.get("/api/v2/userdata", params={"path": name})).status_code == 404
    assert (await client.get("/api/userdata", params={"dir": name})).status_code == 404


async def test_an_image_too_large_to_open_is_no_image(client, volume):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    head = b"IHDR" + struct.pack(">II", 1 << 20, 1 << 20) + buffer.getvalue()[24:29]
    data = buffer.getvalue()[:12] + head + struct.pack(">I", zlib.crc32(head)) + buffer.getvalue()[33:]
    volume.write(FileRef("output", "", "a.png"), data)
    assert (await client.get("/api/view?filename=a.png&preview=webp")).status_code == 404


async def test_a_link_out_of_the_area_hides_no_other_file(client, volume, tmp_path):
    volume.write(FileRef("output", "", "a.png"), b"1")
    (tmp_path / "secret").write_bytes(b"2")
    (tmp_path / "output" / "out").symlink_to(tmp_path / "secret")
    assert (await client.get("/internal/files/output")).json() == ["a.png [output]"]


@pytest.mark.parametrize(
    ("path", "status_code"),
    [
        ("/models/x", 404),
        ("/experiment/models/x", 404),
        ("/view_metadata/x?filename=a.safetensors", 404),
        ("/userdata?dir=..", 403),
    ],
)
async def test_a_root_route_words_the_same_refusal_as_under_api(client, path, status_code):
    answer = await client.get(path)
    assert (answer.status_code, answer.json()["status_code"]) == (status_code, status_code)
    assert (await client.get(f"/api{path}")).status_code == status_code


async def test_no_answer_says_where_the_servers_files_are(client, tmp_path):
    for path in ("/internal/folder_paths", "/api/experiment/models", "/api/models/checkpoints"):
        answer = await client.get(path)
        assert answer.status_code == 200
        assert str(tmp_path) not in answer.text


@pytest.mark.parametrize("extra_data", [[1], "text", 5, None])
async def test_extra_data_that_is_no_object_is_a_bad_request_whatever_the_headers(client, example, extra_data):
    headers = {"comfy-usage-source": "somewhere"}
    answer = await client.post("/api/prompt", json={**example, "extra_data": extra_data}, headers=headers)
    assert answer.status_code == (200 if extra_data is None else 400)


async def test_a_list_that_is_no_link_is_refused_only_where_an_output_needs_it(client, example):
    stray = {"class_type": "EmptyLatentImage", "inputs": {"width": [1, 2, 3], "height": 64, "batch_size": 1}}
    body = {**example, "prompt": {**example["prompt"], "stray": stray}}
    answer = await client.post("/api/prompt", json=body)
    assert (answer.status_code, answer.json()["node_errors"]) == (200, {})
    assert (await client.post("/prompt", json=body)).status_code == 400
