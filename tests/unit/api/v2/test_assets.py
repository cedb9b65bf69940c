"""Assets of Comfy API v2: bytes once, references counted, and outputs among them."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import httpx
import pytest

from serve_app.api.v2 import outputs
from serve_app.api.v2.background_hasher import BackgroundHasher
from serve_app.service.service import Service
from serve_app.store.files.s3 import S3
from serve_app.store.files.store import FileRef
from serve_app.store.page.assets import FOLDER, Asset, ExpireAssets, SetHash
from tests.unit.api.v2.test_jobs import code

blake3 = pytest.importorskip("blake3").blake3

UNKNOWN = "550e8400-e29b-41d4-a716-446655440000"
DATA = b"bytes of a picture"


def hashed(data: bytes = DATA) -> str:
    return f"blake3:{blake3(data).hexdigest()}"


async def upload(
    client: httpx.AsyncClient, data: bytes = DATA, key: str | None = None, **fields: Any
) -> httpx.Response:
    form = {"content_type": "image/png", "file_path": "a.png", **fields}
    headers = {} if key is None else {"Idempotency-Key": key}
    return await client.post("/api/v2/assets", data=form, files={"file": ("a.png", data)}, headers=headers)


async def refer(client: httpx.AsyncClient, hash_: str, **members: Any) -> httpx.Response:
    return await client.post("/api/v2/assets/from-hash", json={"hash": hash_, **members})


def files(volume) -> list[str]:
    return list(volume.names("input", FOLDER))


def loading(example: dict[str, Any], asset: Any) -> dict[str, Any]:
    """Return a graph that names an asset where a file's name would be: in some node's text."""
    graph: dict[str, Any] = example["prompt"]
    node_id = next(node_id for node_id, node in graph.items() if "text" in node["inputs"])
    node = graph[node_id]
    reference = {"__type": "core/ASSET", "info": {"id": asset}}
    return {**graph, node_id: {**node, "inputs": {**node["inputs"], "text": reference}}}


def named(graph: dict[str, Any]) -> set[str]:
    """Return the texts of a graph."""
    return {node["inputs"]["text"] for node in graph.values() if "text" in node["inputs"]}


async def test_an_upload_is_described_and_read_whole_and_in_part(client):
    answer = await upload(client, tags=["a", "b"])
    asset = answer.json()
    assert answer.status_code == 201
    assert (asset["hash"], asset["size_bytes"], asset["created_new"]) == (hashed(), len(DATA), True)
    assert (asset["content_type"], asset["file_path"], asset["tags"]) == ("image/png", "a.png", ["a", "b"])
    assert asset["expires_at"] is None
    assert asset["url"] == f"http://test/api/v2/assets/{asset['id']}/content"
    again = (await client.get(f"/api/v2/assets/{asset['id']}")).json()
    assert again["hash"] == asset["hash"]
    whole = await client.get(asset["url"])
    assert (whole.content, whole.headers["content-type"]) == (DATA, "image/png")
    assert whole.headers["x-content-type-options"] == "nosniff"
    part = await client.get(asset["url"], headers={"Range": "bytes=0-4"})
    assert (part.status_code, part.content) == (206, DATA[:5])
    assert part.headers["content-range"] == f"bytes 0-4/{len(DATA)}"
    outside = await client.get(asset["url"], headers={"Range": "bytes=99-"})
    assert code(outside) == (416, "range_not_satisfiable")
    assert outside.headers["content-range"] == f"bytes */{len(DATA)}"


async def test_what_a_browser_could_run_is_an_attachment(client):
    asset = (await upload(client, content_type="text/html", file_path="a.html")).json()
    answer = await client.get(asset["url"])
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")


async def test_equal_bytes_are_stored_once_and_go_with_their_last_reference(client, volume):
    first = (await upload(client)).json()
    second = await upload(client, file_path="b.png")
    assert (second.status_code, second.json()["created_new"]) == (200, False)
    third = await refer(client, hashed(), file_path="c.png")
    assert (third.status_code, third.json()["content_type"]) == (201, "image/png")
    assert len(files(volume)) == 1
    for asset in (first, second.json()):
        assert (await client.delete(f"/api/v2/assets/{asset['id']}")).status_code == 204
        assert code(await client.delete(f"/api/v2/assets/{asset['id']}")) == (404, "not_found")
    assert (await client.get(third.json()["url"])).content == DATA
    await client.delete(f"/api/v2/assets/{third.json()['id']}")
    assert files(volume) == []
    assert (await client.head(f"/api/v2/assets/by-hash/{hashed()}")).status_code == 404


async def test_in_a_bucket_they_lie_once_too(client, service, bucket):
    service.store = S3(bucket)
    large = DATA * 5000
    assets = [(await upload(client, large, file_path=f"{n}.png")).json() for n in range(2)]
    assert len(files(service.store)) == 1
    part = await client.get(assets[1]["url"], headers={"Range": "bytes=80000-80009"})
    assert (part.status_code, part.content) == (206, large[80000:80010])
    for left, asset in zip((1, 0), assets, strict=True):
        assert (await client.delete(f"/api/v2/assets/{asset['id']}")).status_code == 204
        assert len(files(service.store)) == left


async def test_the_same_reference_is_given_again(client):
    first = (await upload(client)).json()
    again = await refer(client, hashed(), file_path="a.png")
    assert (again.status_code, again.json()["id"]) == (200, first["id"])
    assert (await upload(client)).json()["id"] == first["id"]


async def test_uploads_of_equal_bytes_at_once_leave_one_file(client, volume):
    answers = await asyncio.gather(*(upload(client, file_path=f"{n}.png") for n in range(6)))
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [201]
    assert len(files(volume)) == 1
    for answer in answers:
        assert (await client.get(answer.json()["url"])).content == DATA


async def test_bytes_are_looked_up_by_their_hash(client):
    assert (await client.head(f"/api/v2/assets/by-hash/{hashed()}")).status_code == 404
    assert code(await refer(client, hashed())) == (404, "blob_not_found")
    await upload(client)
    for text in (hashed(), hashed().replace(":", "%3A")):
        assert (await client.head(f"/api/v2/assets/by-hash/{text}")).status_code == 200


async def test_a_wrong_hash_makes_no_asset(client, volume):
    answer = await upload(client, expected_hash=hashed(b"other"))
    assert code(answer) == (409, "hash_mismatch")
    assert answer.json()["error"]["details"]["actual"] == hashed()
    assert files(volume) == []


async def test_a_key_is_used_once_by_uploads_and_jobs_alike(client, volume, example):
    assert (await upload(client, key="k")).status_code == 201
    assert code(await upload(client, b"other", key="k")) == (422, "idempotency_key_reuse")
    assert len(files(volume)) == 1
    answer = await client.post("/api/v2/jobs", json={"workflow": example["prompt"]}, headers={"Idempotency-Key": "k"})
    assert code(answer) == (422, "idempotency_key_reuse")


@pytest.mark.parametrize(
    "fields",
    [
        {"file_path": "../a.png"},
        {"file_path": "/a.png"},
        {"file_path": "C:/a.png"},
        {"file_path": "a\\b.png"},
        {"file_path": "models/loras/a.safetensors"},
        {"content_type": "png"},
        {"expected_hash": "sha256:00"},
        {"expires_in": "59"},
        {"expires_in": "604801"},
        {"expires_in": "x"},
        {"tags": ["\x00"]},
    ],
)
async def test_a_field_that_is_wrong_is_refused(client, volume, fields):
    assert code(await upload(client, **fields)) == (400, "invalid_request")
    assert files(volume) == []


@pytest.mark.parametrize(
    "members", [{"hash": "x"}, {"other": 1}, {"tags": "a"}, {"expires_in": True}, {"file_path": 1}]
)
async def test_a_reference_that_is_wrong_is_refused(client, members):
    answer = await client.post("/api/v2/assets/from-hash", json={"hash": hashed(), **members})
    assert code(answer) == (400, "invalid_request")


async def test_a_form_without_a_file_or_too_large_is_refused(client):
    assert code(await client.post("/api/v2/assets", data={"file": "text"})) == (400, "invalid_request")
    assert code(await client.post("/api/v2/assets", content=b"x")) == (400, "invalid_request")
    assert code(await upload(client, bytes(200_001))) == (413, "payload_too_large")


@pytest.mark.parametrize("asset_id", [UNKNOWN, "no-uuid", "%00"])
async def test_an_unknown_asset_is_not_found(client, asset_id):
    for path in ("", "/content"):
        assert code(await client.get(f"/api/v2/assets/{asset_id}{path}")) == (404, "not_found")
    assert code(await client.delete(f"/api/v2/assets/{asset_id}")) == (404, "not_found")


async def test_an_older_scheduler_changes_nothing_and_says_to_come_back(client, scheduler):
    asset = (await upload(client)).json()
    scheduler.scheduler.jobs.acquire("a newer one")
    answer = await client.delete(f"/api/v2/assets/{asset['id']}")
    assert code(answer) == (429, "deployment_not_ready")
    assert int(answer.headers["Retry-After"]) > 0


# Expiry ------------------------------------------------------------------------------------------------------------


async def test_an_asset_is_gone_after_its_time_and_its_bytes_with_it(client, scheduler, volume, monkeypatch):
    asset = (await upload(client, expires_in="60")).json()
    assert asset["expires_at"] is not None
    now_s = time.time()
    assert await scheduler.query(ExpireAssets()) == ()
    monkeypatch.setattr("serve_app.store.page.assets.time.time", lambda: now_s + 61)
    assert code(await client.get(f"/api/v2/assets/{asset['id']}")) == (404, "not_found")
    [ref] = await scheduler.query(ExpireAssets())
    assert [ref.filename] == files(volume)


async def test_a_reference_extends_a_life_and_never_shortens_it(client):
    first = (await upload(client, expires_in="3600")).json()
    shorter = (await refer(client, hashed(), file_path="a.png", expires_in=60)).json()
    assert shorter["expires_at"] == first["expires_at"]
    longer = (await refer(client, hashed(), file_path="a.png", expires_in=7200)).json()
    assert longer["expires_at"] > first["expires_at"]
    assert (await refer(client, hashed(), file_path="a.png")).json()["expires_at"] is None


# In workflows ------------------------------------------------------------------------------------------------------


async def test_a_reference_in_a_graph_is_the_files_name_to_its_loader(client, volume, example):
    asset = (await upload(client)).json()
    answer = await client.post("/api/v2/jobs", json={"workflow": loading(example, asset["id"])})
    assert answer.status_code == 201, answer.text
    graph = (await client.get(f"/api/v2/jobs/{answer.json()['id']}/workflow")).json()["workflow"]
    assert f"{FOLDER}/{files(volume)[0]}" in named(graph)


async def test_what_a_job_uses_stays_until_it_has_ended(client, replica, scheduler, volume, example, monkeypatch):
    asset = (await upload(client, expires_in="60")).json()
    job_id = (await client.post("/api/v2/jobs", json={"workflow": loading(example, asset["id"])})).json()["id"]
    assert code(await client.delete(f"/api/v2/assets/{asset['id']}")) == (409, "asset_in_use")
    now_s = time.time()
    monkeypatch.setattr("serve_app.store.page.assets.time.time", lambda: now_s + 61)
    assert await scheduler.query(ExpireAssets()) == ()
    await client.post(f"/api/v2/jobs/{job_id}/cancel")
    assert len(await scheduler.query(ExpireAssets())) == 1


@pytest.mark.parametrize("asset", [UNKNOWN, "no-uuid", 5, None])
async def test_a_reference_to_nothing_refuses_the_job(client, example, asset):
    answer = await client.post("/api/v2/jobs", json={"workflow": loading(example, asset)})
    assert code(answer) == (422, "missing_asset")
    assert answer.json()["error"]["details"]["missing_ids"] == [asset if isinstance(asset, str) else None]


async def test_a_deleted_asset_is_not_there_for_a_job(client, example):
    asset = (await upload(client)).json()
    await client.delete(f"/api/v2/assets/{asset['id']}")
    answer = await client.post("/api/v2/jobs", json={"workflow": loading(example, asset["id"])})
    assert code(answer) == (422, "missing_asset")


# Outputs -----------------------------------------------------------------------------------------------------------


async def ended(client: httpx.AsyncClient, replica, example: dict[str, Any], ui: dict[str, Any]) -> dict[str, Any]:
    """Return a job with this output."""
    job_id = (await client.post("/api/v2/jobs", json={"workflow": example["prompt"]})).json()["id"]
    await replica.succeed(job_id, {"6": ui})
    job: dict[str, Any] = (await client.get(f"/api/v2/jobs/{job_id}")).json()
    return job


async def test_whatever_a_node_shows_is_an_output_with_its_bytes(client, replica, volume, example):
    volume.write(FileRef("output", "sub", "a_00001_.png"), DATA)
    volume.write(FileRef("temp", "", "b.latent"), b"latent")
    ui = {
        "images": [{"filename": "a_00001_.png", "subfolder": "sub", "type": "output"}],
        "animated": [False],
        "latents": [{"filename": "b.latent", "subfolder": "", "type": "temp"}],
        "3d": [{"filename": "gone.glb", "subfolder": "", "type": "output"}],
        "text": ["a caption"],
        "numbers": [{"value": 5}],
    }
    job = await ended(client, replica, example, ui)
    shown = [(o["name"].split("-")[0][:12], o["type"], o["size_bytes"]) for o in job["outputs"]]
    assert shown[:3] == [("a_00001_.png", "image", len(DATA)), ("b.latent", "latent", 6), ("gone.glb", "file", 0)]
    assert [output["type"] for output in job["outputs"]] == ["image", "latent", "file", "text", "text"]
    contents = [await client.get(output["url"]) for output in job["outputs"]]
    assert [answer.content for answer in contents[:2]] == [DATA, b"latent"]
    assert code(contents[2]) == (404, "output_unavailable")
    assert [answer.text for answer in contents[3:]] == ["a caption", '{"value": 5}']
    assert job["outputs"][0]["hash"] == hashed()
    assert {(output["node_id"], output["job_id"]) for output in job["outputs"]} == {("6", job["id"])}


async def test_outputs_keep_their_ids_and_are_assets(client, replica, volume, example):
    volume.write(FileRef("output", "", "a.png"), DATA)
    job = await ended(client, replica, example, {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]})
    [output] = (await client.get(job["urls"]["self"])).json()["outputs"]
    assert output["id"] == job["outputs"][0]["id"]
    asset = (await client.get(f"/api/v2/assets/{output['id']}")).json()
    assert (asset["job_id"], asset["hash"], asset["file_path"]) == (job["id"], hashed(), "a.png")
    answer = await client.post("/api/v2/jobs", json={"workflow": loading(example, output["id"])})
    graph = (await client.get(f"/api/v2/jobs/{answer.json()['id']}/workflow")).json()["workflow"]
    assert "a.png [output]" in named(graph)


async def test_a_deleted_output_is_not_listed_and_its_file_stays(client, replica, volume, example):
    volume.write(FileRef("output", "", "a.png"), DATA)
    job = await ended(client, replica, example, {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]})
    [output] = job["outputs"]
    reference = (await refer(client, hashed(), file_path="mine.png")).json()
    for expected in (204, 404):
        assert (await client.delete(f"/api/v2/assets/{output['id']}")).status_code == expected
    assert (await client.get(job["urls"]["self"])).json()["outputs"] == []
    assert (await client.delete(f"/api/v2/assets/{reference['id']}")).status_code == 204
    assert (await client.get("/view?filename=a.png")).content == DATA


async def test_a_large_output_comes_to_have_its_hash(client, replica, volume, example, monkeypatch):
    monkeypatch.setattr(outputs, "HASHED_BYTES", len(DATA) - 1)
    volume.write(FileRef("output", "", "a.png"), DATA)
    job = await ended(client, replica, example, {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]})
    assert [(output["hash"], output["size_bytes"]) for output in job["outputs"]] == [(None, len(DATA))]
    async with asyncio.timeout(60):
        while (await client.get(f"/api/v2/assets/{job['outputs'][0]['id']}")).json()["hash"] is None:
            await asyncio.sleep(0.01)
    [output] = (await client.get(job["urls"]["self"])).json()["outputs"]
    assert output["hash"] == hashed()
    assert (await client.head(f"/api/v2/assets/by-hash/{hashed()}")).status_code == 200


async def test_a_first_look_reads_no_more_than_its_bytes_however_many_outputs_there_are(
    client, replica, volume, example, monkeypatch
):
    monkeypatch.setattr(outputs, "HASHED_BYTES", 2 * len(DATA))
    names = [f"{number}.png" for number in range(4)]
    for name in names:
        volume.write(FileRef("output", "", name), DATA)
    shown = [{"filename": name, "subfolder": "", "type": "output"} for name in names]
    job = await ended(client, replica, example, {"images": shown})
    assert [output["hash"] for output in job["outputs"]] == [hashed(), hashed(), None, None]
    async with asyncio.timeout(60):
        while None in [o["hash"] for o in (await client.get(job["urls"]["self"])).json()["outputs"]]:
            await asyncio.sleep(0.01)


async def test_tenants_take_turns_at_late_hashes(service, volume):
    order: list[str] = []
    volume.write(FileRef("output", "", "a.png"), DATA)

    class Asked:
        """A tenant's service, which notes whose hash is set."""

        store = volume

        def __init__(self, tenant: str) -> None:
            self.tenant = tenant

        async def query(self, query: SetHash) -> None:
            assert query.hash == hashed()
            order.append(query.asset_id)

    late = BackgroundHasher(1)
    for tenant, count in (("a", 4), ("b", 2)):
        for number in range(count):
            asset = Asset(f"{tenant}{number}", None, "output", "a.png", len(DATA), "image/png", None, (), 0.0)
            late.begin(cast(Service, Asked(tenant)), asset)
            late.begin(cast(Service, Asked(tenant)), asset)
    async with asyncio.timeout(60):
        while len(order) < 6:
            await asyncio.sleep(0.01)
    assert order == ["a0", "b0", "a1", "b1", "a2", "a3"]
