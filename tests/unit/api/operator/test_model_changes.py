"""Admins upload and delete model files where the configuration lets them: a file is there whole or not at all."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.api.app import create_app
from serve_app.api.concurrency_limits import ConcurrencyLimits
from serve_app.cli import main
from serve_app.config.limits import ModelChangeLimits
from serve_app.service.request_limits import Limits
from serve_app.service.service import Service
from serve_app.store.models.catalog import Catalog
from serve_app.store.models.mirror import Mirror
from serve_app.store.tenants.audit import ReadAudit
from tests.unit.api.tenant_world import world

MODEL = "/models/checkpoints/sub/new.safetensors"
TENSOR = "model.diffusion_model.input_blocks.0.0.weight"
WEIGHTS = bytes(range(200)) * 300


def safetensors(data: bytes = WEIGHTS, **entries: Any) -> bytes:
    """Return a file of one tensor of bytes."""
    entries = entries or {TENSOR: {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}
    header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + data


@pytest.fixture(params=["folder", "bucket"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Catalog:
    if request.param == "bucket":
        return Catalog(Mirror(request.getfixturevalue("bucket"), tmp_path / "copies"))
    return Catalog(tmp_path / "models")


@pytest.fixture
def service(scheduler, volume, catalog) -> Service:
    limits = Limits(10_000, 10_000, poll_s=1.0, model_changes=ModelChangeLimits(max_bytes=1_000_000))
    return Service(scheduler.client, volume, catalog.names, limits, catalog=catalog)


def left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "models").rglob("*") if path.is_file())


async def test_a_model_is_listed_as_soon_as_it_is_there_and_no_more_once_it_is_deleted(client, catalog):
    body = safetensors()
    assert (await client.get("/models/checkpoints")).json() == []
    put = await client.put(MODEL, content=body)
    assert (put.status_code, put.json()["size"]) == (201, len(body))
    assert (await client.get("/models/checkpoints")).json() == ["sub/new.safetensors"]
    [told] = (await client.get("/experiment/models/checkpoints")).json()
    assert (told["name"], told["size"], told["pathIndex"]) == ("sub/new.safetensors", len(body), 0)
    assert (await asyncio.to_thread(catalog.path, "checkpoints", "sub/new.safetensors")).read_bytes() == body
    assert (await client.delete(MODEL)).json() == {"deleted": True}
    assert (await client.get("/models/checkpoints")).json() == []
    assert (await client.delete(MODEL)).status_code == 404
    assert (await client.put(MODEL, content=body)).status_code == 201


async def test_a_folder_of_several_directories_has_it_where_its_name_says(client, catalog):
    assert (await client.put("/models/diffusion_models/a.safetensors", content=safetensors())).status_code == 201
    assert await asyncio.to_thread(catalog.directory_index, "diffusion_models", "a.safetensors") == 1


async def test_none_takes_anothers_place(client, catalog):
    assert (await client.put(MODEL, content=safetensors())).status_code == 201
    refused = await client.put(MODEL, content=safetensors(b"other"))
    assert (refused.status_code, refused.json()["error"]) == (409, "Model file in use")
    assert (await asyncio.to_thread(catalog.path, "checkpoints", "sub/new.safetensors")).read_bytes() == safetensors()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "header is not there"),
        (b"\x80\x02}q", "header is not there, or is cut off"),
        (b"\xff" * 4000, "header is not there"),
        (safetensors()[:-1], "is cut off: it has"),
        (safetensors()[:40], "is cut off"),
        (safetensors() + b"x", "has more than the"),
        (safetensors(b"", __metadata__={"a": "b"}), "holds no tensors"),
        (struct.pack("<Q", 4) + b"[{}]", "says nothing of tensors"),
    ],
)
async def test_what_is_no_whole_safetensors_file_is_refused_and_leaves_nothing(client, tmp_path, body, why):
    refused = await client.put(MODEL, content=body)
    assert refused.status_code == 400, refused.text
    assert why in refused.json()["detail"]
    assert (await client.get("/models/checkpoints")).json() == []
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/models/checkpoints/..%2Fnew.safetensors", 400),
        ("/models/checkpoints/%2Fetc%2Fnew.safetensors", 400),
        ("/models/checkpoints/.new.safetensors", 400),
        ("/models/checkpoints/a%5Cnew.safetensors", 400),
        ("/models/checkpoints/a%09new.safetensors", 400),
        (f"/models/checkpoints/{'a/' * 20}new.safetensors", 400),
        (f"/models/checkpoints/{'a' * 250}.safetensors", 400),
        (f"/models/checkpoints/{'%C3%A4' * 120}.safetensors", 400),
        ("/models/checkpoints/new.ckpt", 400),
        ("/models/checkpoints/new.safetensors.part", 400),
        ("/models/diffusers/a/unet/new.safetensors", 400),
        ("/models/nowhere/new.safetensors", 404),
    ],
)
async def test_a_name_that_cannot_be_is_refused(client, tmp_path, path, status):
    request = httpx.Request("PUT", "http://test" + path, content=safetensors())
    request.url = httpx.URL(scheme="http", host="test", raw_path=path.encode())
    refused = await client.send(request)
    assert refused.status_code == status, refused.text
    assert left(tmp_path) == []


async def test_where_the_configuration_says_nothing_nobody_may(client, service):
    service.limits = replace(service.limits, model_changes=None)
    for answer in (await client.put(MODEL, content=safetensors()), await client.delete(MODEL)):
        assert (answer.status_code, "model_changes" in answer.json()["detail"]) == (403, True)


async def test_a_file_that_is_too_large_or_slow_or_one_too_many_is_refused_by_its_limit(service, client, tmp_path):
    answer = await client.put(MODEL, content=safetensors(b"x" * 1_000_001))
    assert (answer.status_code, "model_changes.max_bytes" in answer.text) == (413, True)

    async def forever() -> AsyncIterator[bytes]:
        yield safetensors()[:20]
        await asyncio.sleep(60)

    service.limits = replace(service.limits, model_changes=ModelChangeLimits(body_s=0.2))
    answer = await client.put(MODEL, content=forever())
    assert (answer.status_code, "model_changes.body_s" in answer.text) == (408, True)
    app = create_app(service, concurrency=ConcurrencyLimits(model_files=1))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as crowded:
        with app.state.concurrency.model_files.acquire():
            answer = await crowded.put(MODEL, content=safetensors())
    assert (answer.status_code, "model_changes.at_once" in answer.text) == (503, True)
    assert left(tmp_path) == []


async def test_a_client_that_goes_away_leaves_nothing(service, tmp_path):
    app = create_app(service)
    messages = iter(
        [{"type": "http.request", "body": safetensors()[:5000], "more_body": True}, {"type": "http.disconnect"}]
    )
    sent: list[Any] = []

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "PUT", "path": MODEL, "raw_path": MODEL.encode(), "query_string": b""}
    await app({**scope, "headers": [(b"host", b"test")], "http_version": "1.1", "scheme": "http"}, receive, send)
    assert sent == []
    assert await asyncio.to_thread(service.catalog.names, "checkpoints") == []
    assert left(tmp_path) == []


async def test_a_model_that_an_unfinished_job_names_stays_until_that_has_ended(client, replica, example):
    body = safetensors()
    name = example["prompt"]["1"]["inputs"]["ckpt_name"]
    assert (await client.put(f"/models/checkpoints/{name}", content=body)).status_code == 201
    assert (await client.put(f"/models/loras/x-{name}", content=body)).status_code == 201
    job_id = (await client.post("/prompt", json=example)).json()["prompt_id"]
    refused = await client.delete(f"/models/checkpoints/{name}")
    assert (refused.status_code, job_id in refused.json()["detail"]) == (409, True)
    assert (await client.delete(f"/models/loras/x-{name}")).status_code == 200
    await replica.succeed(job_id, {})
    assert (await client.delete(f"/models/checkpoints/{name}")).status_code == 200


async def test_the_audit_log_has_who_changed_which_model(tmp_path):
    async with world(tmp_path) as made:
        async with made.client(made.keys["root"]) as root, made.client(made.keys["a"]) as a:
            assert (await a.put(MODEL, content=safetensors())).status_code == 403
            assert (await root.put(MODEL, content=safetensors())).status_code == 201
            assert (await root.delete(MODEL)).status_code == 200
        async with asyncio.timeout(60):
            while len(entries := await made.service.query(ReadAudit(3))) < 3:
                await asyncio.sleep(0.1)
    told = [(entry.tenant, entry.what, entry.result) for entry in reversed(entries)]
    assert told == [("a", f"PUT {MODEL}", 403), ("", f"PUT {MODEL}", 201), ("", f"DELETE {MODEL}", 200)]


async def test_the_command_line_uploads_and_deletes(tmp_path, capsys):
    file = tmp_path / "mine.safetensors"
    file.write_bytes(safetensors())
    async with world(tmp_path) as made:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SERVE_APP_KEY", made.keys["root"])
            asked = ["--server", made.url]
            assert await asyncio.to_thread(main, ["add-model", str(file), "loras", *asked]) == 0
            assert made.service.catalog.path("loras", "mine.safetensors").read_bytes() == safetensors()
            assert await asyncio.to_thread(main, ["add-model", str(file), "loras/mine.safetensors", *asked]) == 1
            assert await asyncio.to_thread(main, ["remove-model", "loras/mine.safetensors", *asked]) == 0
            assert made.service.catalog.names("loras") == []
    told = capsys.readouterr()
    assert told.out == f"loras/mine.safetensors: {len(safetensors())} bytes\nloras/mine.safetensors is deleted\n"
    assert "delete it before another takes its place" in told.err
