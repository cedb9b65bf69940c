"""The web page's assets: uploads, references to bytes, and what is kept with an asset."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from serve_app.api.comfy.assets import uploads as asset_uploads
from serve_app.store.files.store import FileRef
from tests.unit.api.comfy.test_assets import INPUTS, NOBODY, OUTPUTS, drawn, listed
from tests.unit.api.v2.test_assets import DATA, files, hashed, upload


async def post(client: httpx.AsyncClient, data: bytes = DATA, **fields: Any) -> httpx.Response:
    """Upload as the page does."""
    return await client.post("/api/assets", data=fields, files={"file": ("a.png", data, "image/png")})


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_an_upload_of_the_page_is_an_input_and_an_asset_of_v2(client, volume):
    answer = await post(client, tags='["input", "mine"]', user_metadata='{"filename": "x"}')
    made = answer.json()
    assert (answer.status_code, made["created_new"]) == (201, True)
    assert (made["display_name"], made["tags"], made["size"]) == ("a.png", ["input", "mine"], len(DATA))
    assert made["user_metadata"]["filename"] == "x"
    assert (await client.get(f"/api/assets/{made['id']}/content")).content == DATA
    assert (await client.get(f"/api/v2/assets/{made['id']}")).json()["hash"] == hashed()
    assert [asset["id"] for asset in await listed(client, INPUTS)] == [made["id"]]
    again = await post(client)
    assert (again.status_code, again.json()["id"], again.json()["created_new"]) == (200, made["id"], False)
    assert len(files(volume)) == 1
    other = await post(client, name="b.png", tags="one, two")
    assert (other.status_code, other.json()["tags"]) == (201, ["input", "one", "two"])
    assert len(files(volume)) == 1


async def test_bytes_that_are_there_are_referred_to_without_being_sent(client):
    assert (await client.head(f"/api/assets/hash/{hashed()}")).status_code == 404
    for answer in (
        await client.post("/api/assets/from-hash", json={"hash": hashed()}),
        await client.post("/api/assets", data={"hash": hashed()}, files={"none": (None, "")}),
    ):
        assert refusal(answer) == (404, "ASSET_NOT_FOUND")
    await upload(client)
    assert (await client.head(f"/api/assets/hash/{hashed()}")).status_code == 200
    body = {"hash": hashed(), "name": "sub/b.png", "tags": ["input", "mine"], "user_metadata": {"a": [1]}}
    made = await client.post("/api/assets/from-hash", json=body)
    assert (made.status_code, made.json()["display_name"], made.json()["tags"]) == (201, "sub/b.png", ["input", "mine"])
    assert (await client.get(f"/api/assets/{made.json()['id']}")).json()["user_metadata"]["a"] == [1]
    again = await client.post("/api/assets/from-hash", json=body)
    assert (again.status_code, again.json()["id"]) == (200, made.json()["id"])
    named = await client.post("/api/assets", data={"hash": hashed(), "name": "c.png"}, files={"none": (None, "")})
    assert (named.status_code, named.json()["display_name"]) == (201, "c.png")


async def test_an_upload_whose_bytes_are_others_is_refused(client, volume):
    assert refusal(await post(client, hash=hashed(b"other"))) == (400, "HASH_MISMATCH")
    assert refusal(await post(client, b"")) == (400, "EMPTY_UPLOAD")
    assert files(volume) == []


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"id": NOBODY}, "UNSUPPORTED_FIELD"),
        ({"hash": "sha256:0"}, "INVALID_BODY"),
        ({"tags": "models"}, "INVALID_BODY"),
        ({"tags": "output"}, "INVALID_BODY"),
        ({"tags": '["a", 1'}, "INVALID_BODY"),
        ({"name": "../a.png"}, "INVALID_BODY"),
        ({"name": "models/checkpoints/a.safetensors"}, "INVALID_BODY"),
        ({"mime_type": "png"}, "INVALID_BODY"),
        ({"user_metadata": "[]"}, "INVALID_BODY"),
        ({"user_metadata": "{"}, "INVALID_BODY"),
        ({"user_metadata": '{"a": NaN}'}, "INVALID_BODY"),
        ({"user_metadata": json.dumps({"a": "x" * asset_uploads.METADATA_CHARACTERS})}, "INVALID_BODY"),
        ({"preview_id": NOBODY}, "INVALID_BODY"),
    ],
)
async def test_an_upload_that_cannot_be_is_refused(client, volume, fields, code):
    assert refusal(await post(client, **fields)) == (400, code)
    assert files(volume) == []


async def test_a_body_that_is_no_form_or_has_no_file_is_refused(client):
    assert refusal(await client.post("/api/assets", json={"url": "https://example.org"})) == (
        415,
        "UNSUPPORTED_MEDIA_TYPE",
    )
    assert refusal(await client.post("/api/assets", files={"none": (None, "")})) == (400, "MISSING_FILE")
    assert (await post(client, bytes(200_001))).status_code == 413


async def test_an_asset_is_renamed_and_its_metadata_is_changed(client, replica, volume, example):
    await drawn(client, replica, volume, example, "a.png")
    [output] = await listed(client, OUTPUTS)
    preview = (await post(client, b"preview")).json()
    body = {"name": "night/better.png", "user_metadata": {"mine": 1, "jobId": "no"}, "preview_id": preview["id"]}
    changed = (await client.put(f"/api/assets/{output['id']}", json=body)).json()
    assert changed == (await client.get(f"/api/assets/{output['id']}")).json()
    assert (changed["display_name"], changed["name"]) == ("night/better.png", "a.png")
    assert changed["user_metadata"] == {**output["user_metadata"], "mine": 1}
    assert changed["preview_id"] == preview["id"]
    assert (await client.get(changed["preview_url"])).content == b"preview"
    assert (await client.put(f"/api/assets/{output['id']}", json={})).json() == changed
    [found] = await listed(client, OUTPUTS)
    assert found["display_name"] == "night/better.png"


async def test_what_cannot_be_changed_is_refused(client, volume):
    volume.write(FileRef("input", "", "mine.png"), DATA)
    [file] = await listed(client, INPUTS)
    assert refusal(await client.put(f"/api/assets/{file['id']}", json={"name": "b.png"})) == (403, "FORBIDDEN")
    assert refusal(await client.put(f"/api/assets/{NOBODY}", json={"name": "b.png"})) == (404, "ASSET_NOT_FOUND")
    this = f"/api/assets/{(await upload(client)).json()['id']}"
    for body in ({"name": ""}, {"name": "/a"}, {"user_metadata": []}, {"preview_id": file["id"]}, {"preview_id": 1}):
        assert refusal(await client.put(this, json=body)) == (400, "INVALID_BODY"), body


async def test_a_jobs_files_are_listed(client, replica, volume, example):
    job_id = await drawn(client, replica, volume, example, "a.png", "b.png", "c.png")
    pages = [(await client.get(f"/api/jobs/{job_id}/assets?limit=2&offset={n}")).json() for n in (0, 2)]
    assert [[asset["name"] for asset in page["assets"]] for page in pages] == [["a.png", "b.png"], ["c.png"]]
    assert [page["pagination"]["has_more"] for page in pages] == [True, False]
    assert pages[0]["assets"][0]["node_id"] == "6"
    assert {asset["id"] for page in pages for asset in page["assets"]} == {
        asset["id"] for asset in await listed(client, OUTPUTS)
    }
    assert refusal(await client.get(f"/api/jobs/{NOBODY}/assets")) == (404, "JOB_NOT_FOUND")


async def test_nothing_scans_for_files(client):
    assert (await client.get("/api/assets/seed/status")).json()["state"] == "IDLE"
    assert (await client.post("/api/assets/seed/cancel")).json() == {"status": "idle"}
    assert (await client.post("/api/assets/prune")).json() == {"status": "completed", "marked": 0}
