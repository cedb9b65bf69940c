"""Exports of the web page: many assets as one ZIP file."""

from __future__ import annotations

import asyncio
import io
import time
import zipfile
from typing import Any

import httpx
import pytest

from serve_app.api.app import create_app
from serve_app.api.comfy.assets import exports
from serve_app.store.files.store import FileRef
from serve_app.store.page import exports as kept
from serve_app.store.page import gallery
from tests.unit.api.comfy.test_assets import INPUTS, MODELS, NOBODY, OUTPUTS, drawn, listed
from tests.unit.api.http_server import listening
from tests.unit.api.v2.test_assets import DATA, upload


async def exported(client: httpx.AsyncClient, **wish: Any) -> dict[str, bytes]:
    """Export as the page does; return the files by name."""
    begun = await client.post("/api/assets/export", json=wish)
    assert (begun.status_code, begun.json()["status"]) == (202, "created"), begun.text
    task = (await client.get(f"/api/tasks/{begun.json()['task_id']}")).json()
    assert (task["id"], task["status"]) == (begun.json()["task_id"], "completed")
    place = (await client.get(f"/api/assets/exports/{task['result']['export_name']}")).json()
    answer = await client.get(place["url"])
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip")
    assert answer.headers["content-disposition"] == f'attachment; filename="{task["result"]["export_name"]}"'
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert archive.testzip() is None
    assert len(archive.namelist()) == task["result"]["assets_total"]
    return {name: archive.read(name) for name in archive.namelist()}


async def test_a_jobs_outputs_are_one_archive(client, replica, volume, example):
    job_id = await drawn(client, replica, volume, example, "a.png", "b.png")
    await drawn(client, replica, volume, example, "c.png")
    assert await exported(client, job_ids=[job_id], naming_strategy="preserve") == {"a.png": DATA, "b.png": DATA}
    names = {job_id: ["b.png"]}
    wish = {"job_ids": [job_id], "job_asset_name_filters": names, "naming_strategy": "preserve"}
    assert list(await exported(client, **wish)) == ["b.png"]


async def test_files_of_several_jobs_lie_in_folders(client, replica, volume, example):
    volume.write(FileRef("input", "sub", "mine.png"), b"mine")
    one = await drawn(client, replica, volume, example, "a.png")
    two = await drawn(client, replica, volume, example, "p.png", area="temp")
    [mine] = await listed(client, INPUTS)
    wish = {"job_ids": [one, two], "asset_ids": [mine["id"]], "include_previews": True}
    by_job = await exported(client, **wish, naming_strategy="group_by_job_id")
    assert set(by_job) == {f"{one}/a.png", f"{two}/previews/p.png", "unknown/sub/mine.png"}
    by_time = await exported(client, **wish)
    folders = {name.partition("/")[0] for name in by_time}
    assert len(folders) == 3
    assert all(folder.startswith(time.strftime("%Y-%m", time.gmtime())) for folder in folders)
    assert set(await exported(client, job_ids=[one, two], naming_strategy="preserve")) == {"a.png"}
    [first, _] = await listed(client, OUTPUTS + "&name_contains=.png")
    by_id = await exported(client, asset_ids=[first["id"]], naming_strategy="asset_id")
    assert list(by_id) == [f"{first['id']}.png"]


async def test_two_files_of_one_name_are_both_there(client, replica, volume, example):
    await drawn(client, replica, volume, example, "a.png")
    made = (await upload(client, b"another")).json()
    [output] = await listed(client, OUTPUTS)
    found = await exported(client, asset_ids=[output["id"], made["id"], output["id"]], naming_strategy="preserve")
    assert found == {"a.png": DATA, "a (2).png": b"another"}


async def test_what_is_deleted_or_not_there_is_not_in_it(client, replica, volume, example):
    job_id = await drawn(client, replica, volume, example, "a.png", "b.png")
    first, second = await listed(client, OUTPUTS)
    await client.delete(f"/api/assets/{first['id']}")
    assert list(await exported(client, job_ids=[job_id], naming_strategy="preserve")) == ["b.png"]
    begun = (await client.post("/api/assets/export", json={"asset_ids": [NOBODY, second["id"]]})).json()
    result = (await client.get(f"/api/tasks/{begun['task_id']}")).json()["result"]
    assert result["failed_assets"] == [{"asset_id": NOBODY, "error": "not_found"}]
    assert (result["assets_total"], result["assets_failed"], result["uncompressed_size"]) == (1, 1, len(DATA))
    answer = await client.post("/api/assets/export", json={"job_ids": [NOBODY], "asset_ids": [first["id"]]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "ASSET_NOT_FOUND")


async def test_jobs_that_show_a_great_deal_are_exported_too(client, replica, volume, example, monkeypatch):
    monkeypatch.setattr(gallery, "CHARACTERS", 10)
    jobs = [await drawn(client, replica, volume, example, name) for name in ("a.png", "b.png", "c.png")]
    found = await exported(client, job_ids=[*jobs, NOBODY], naming_strategy="preserve")
    assert sorted(found) == ["a.png", "b.png", "c.png"]


async def test_models_are_not_exported(client, tmp_path):
    file = tmp_path / "models" / "checkpoints" / "a.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"12345678")
    [model] = await listed(client, MODELS)
    answer = await client.post("/api/assets/export", json={"asset_ids": [model["id"]]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "MODEL_NOT_EXPORTABLE")


async def test_an_export_has_a_bound_of_files(client, replica, volume, example, monkeypatch):
    job_id = await drawn(client, replica, volume, example, "a.png", "b.png")
    monkeypatch.setattr(exports, "FILES", 1)
    ids = [asset["id"] for asset in await listed(client, OUTPUTS)]
    for wish in ({"job_ids": [job_id]}, {"asset_ids": ids}):
        answer = await client.post("/api/assets/export", json=wish)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "TOO_MANY_ASSETS")
        assert "2 files" in answer.json()["error"]["message"]


async def test_the_newest_exports_are_kept_for_a_while(client, replica, volume, example, monkeypatch):
    job_id = await drawn(client, replica, volume, example, "a.png")
    monkeypatch.setattr(kept, "KEPT", 2)

    async def begin() -> str:
        return str((await client.post("/api/assets/export", json={"job_ids": [job_id]})).json()["task_id"])

    tasks = [await begin() for _ in range(3)]
    statuses = [(await client.get(f"/api/tasks/{task}")).status_code for task in tasks]
    assert statuses == [404, 200, 200]
    monkeypatch.setattr(kept, "KEPT_S", 0.0)
    assert (await client.get(f"/api/tasks/{tasks[2]}")).json()["error"]["code"] == "TASK_NOT_FOUND"


async def test_a_client_that_leaves_during_a_download_leaves_no_file_open(client, service, volume, replica, example):
    job_id = await drawn(client, replica, volume, example, "a.png")
    size = 64 * 1024 * 1024
    with (volume.resolve(FileRef("output", "", "a.png"))).open("wb") as file:
        file.truncate(size)
    begun = (await client.post("/api/assets/export", json={"job_ids": [job_id]})).json()["task_id"]
    name = (await client.get(f"/api/tasks/{begun}")).json()["result"]["export_name"]
    opened: list[Counted] = []
    service.store = Watched(volume, opened)
    async with listening(create_app(service)) as url, httpx.AsyncClient(base_url=url) as real:
        async with real.stream("GET", f"/api/assets/exports/{name}/content") as answer:
            await anext(answer.aiter_raw())
        async with asyncio.timeout(60):
            while not opened[0].closed:
                await asyncio.sleep(0.02)
    assert 0 < opened[0].count < size


class Watched:
    """A store that remembers what was opened."""

    def __init__(self, store: Any, opened: list[Counted]) -> None:
        self._store, self._opened = store, opened

    def stat(self, ref: FileRef) -> Any:
        return self._store.stat(ref)

    def open(self, ref: FileRef) -> Counted:
        self._opened.append(Counted(self._store.resolve(ref)))
        return self._opened[-1]


class Counted(io.FileIO):
    """A file that counts what is read of it."""

    count = 0

    def read(self, size: int | None = -1) -> Any:
        found = super().read(size)
        self.count += len(found or b"")
        return found


@pytest.mark.parametrize(
    "wish",
    [
        {},
        {"job_ids": []},
        {"job_ids": "x"},
        {"job_ids": ["x"]},
        {"job_ids": [NOBODY] * 1001},
        {"asset_ids": [1]},
        {"job_ids": [NOBODY], "naming_strategy": "flat"},
        {"job_ids": [NOBODY], "naming_strategy": ["flat"]},
        {"job_ids": [NOBODY], "job_asset_name_filters": []},
        {"job_ids": [NOBODY], "job_asset_name_filters": [1]},
        {"job_ids": [NOBODY], "job_asset_name_filters": {NOBODY: []}},
        {"job_ids": [NOBODY], "include_previews": 1},
    ],
)
async def test_an_export_that_cannot_be_is_refused(client, wish):
    answer = await client.post("/api/assets/export", json=wish)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_REQUEST"), answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/api/tasks/x",
        f"/api/tasks/{NOBODY}",
        "/api/assets/exports/x.zip",
        f"/api/assets/exports/comfyui-2026-01-01-{NOBODY}.zip",
        f"/api/assets/exports/comfyui-2026-01-01-{NOBODY}.zip/content",
    ],
)
async def test_what_is_no_export_is_not_there(client, path):
    answer = await client.get(path)
    assert (answer.status_code, answer.json()["error"]["code"][-9:]) == (404, "NOT_FOUND")
