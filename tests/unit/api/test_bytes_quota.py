"""A quota of bytes stored, as clients of each dialect meet it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.config.quotas import Quota, Quotas
from serve_app.scheduler.housekeeping import storage_count
from serve_app.store.files.store import FileRef
from serve_app.store.tenants.tenants import job_id_of
from tests.unit.api.tenant_world import WORKFLOW, World, world

MOST = 1000


@pytest.fixture
async def limited(tmp_path: Path) -> AsyncIterator[World]:
    quotas = Quotas(tenants={"a": Quota(bytes_stored=MOST)})
    async with world(tmp_path, quotas=quotas) as made:
        yield made


async def upload(client: httpx.AsyncClient, name: str, size: int, **fields: str) -> httpx.Response:
    return await client.post("/upload/image", files={"image": (name, b"x" * size, "image/png")}, data=fields)


async def stored(made: World, tenant: str = "a") -> int:
    async with made.client(made.keys["root"]) as root:
        tenants = (await root.get("/tenants")).json()["tenants"]
    return sum(one["bytes_stored"] for one in tenants if one["tenant"] == tenant)


def left(answer: httpx.Response) -> tuple[int, str, str, str]:
    told = (answer.headers[f"X-{name}"] for name in ("Quota", "RateLimit-Limit", "RateLimit-Remaining"))
    assert int(answer.headers["Retry-After"]) > 0
    return (answer.status_code, *told)  # type: ignore[return-value]


async def test_an_upload_beyond_it_is_refused_before_it_is_written_with_what_is_left(limited: World) -> None:
    async with limited.client(limited.keys["a"]) as a:
        assert (await upload(a, "one.png", 700)).status_code == 200
        refused = await upload(a, "two.png", 301)
        assert left(refused) == (429, "bytes_stored", "1000", "300")
        assert "has stored 700 bytes, and this is 301 more" in refused.text
        v2 = await a.post("/api/v2/assets", files={"file": ("a.png", b"y" * 301, "image/png")})
        assert left(v2) == (429, "bytes_stored", "1000", "300")
        assert v2.json()["error"]["code"] == "rate_limited"
        for path in ("/userdata/a.txt", "/api/userdata/a.txt"):
            assert left(await a.post(path, content=b"z" * 301)) == (429, "bytes_stored", "1000", "300")
        assert [ref.filename for area in ("input", "output") for ref, _ in limited.store.files(area)] == ["one.png"]
        assert await stored(limited) == 700
        assert (await upload(a, "two.png", 300)).status_code == 200
        assert (await upload(a, "two.png", 300, overwrite="true")).status_code == 200, "it takes its own place"
        assert (await upload(a, "two.png", 300)).json()["name"] == "two.png", "the same is there already"
    assert await stored(limited) == MOST


async def test_uploads_at_the_same_time_never_pass_it_together(limited: World) -> None:
    async with limited.client(limited.keys["a"]) as a:
        answers = await asyncio.gather(*(upload(a, "same.png", 300 + n) for n in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 5
    assert await stored(limited) == sum(size for _, size, _ in limited.store.inventory("input")) <= MOST


async def test_a_tenant_with_no_bytes_left_submits_nothing_until_something_is_deleted(limited: World) -> None:
    async with limited.client(limited.keys["a"]) as a, limited.client(limited.keys["b"]) as b:
        made = await a.post("/api/v2/assets", files={"file": ("a.png", b"y" * MOST, "image/png")})
        assert made.status_code == 201
        bodies: dict[str, Any] = {"/prompt": {"prompt": WORKFLOW}, "/api/prompt": {"prompt": WORKFLOW}}
        bodies["/api/v2/jobs"] = {"workflow": WORKFLOW}
        for path, body in bodies.items():
            assert left(await a.post(path, json=body)) == (429, "bytes_stored", "1000", "0"), path
            assert (await b.post(path, json=body)).is_success, "another tenant has no such quota"
        assert (await a.delete(f"/api/v2/assets/{made.json()['id']}")).status_code == 204
        assert await stored(limited) == 0
        for path, body in bodies.items():
            accepted = await a.post(path, json=body)
            assert accepted.is_success, path
            told = {key: accepted.headers[f"x-{key}"] for key in ("quota", "ratelimit-limit", "ratelimit-remaining")}
            assert told == {"quota": "bytes_stored", "ratelimit-limit": "1000", "ratelimit-remaining": "1000"}, path


async def test_what_a_job_saves_counts_and_is_never_refused(limited: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_count, "EVERY_S", 0.02)
    async with limited.client(limited.keys["a"]) as a:
        job = (await a.post("/prompt", json={"prompt": WORKFLOW})).json()["prompt_id"]
        limited.store.write(FileRef("output", "@a", "drawn_00001_.png"), b"x" * 1500)
        shown = {"filename": "drawn_00001_.png", "subfolder": "", "type": "output"}
        await limited.replica.succeed(job_id_of(job, "a"), {"2": {"images": [shown], "text": ["said"]}})
        async with asyncio.timeout(60):
            while await stored(limited) < 1500:
                await asyncio.sleep(0.01)
        assert left(await a.post("/prompt", json={"prompt": WORKFLOW})) == (429, "bytes_stored", "1000", "0")
        # A text becomes a file at its first read.
        assert len((await a.get(f"/api/v2/jobs/{job}")).json()["outputs"]) == 2
    assert await stored(limited) == 1500 + len("said")


async def test_what_the_page_keeps_counts_as_it_is_written_moved_and_deleted(limited: World) -> None:
    async with limited.client(limited.keys["a"]) as a:

        async def count_after(answer: httpx.Response) -> int:
            assert answer.is_success, answer.text
            kept = sum(size for _, _, size in limited.service.user_data.counted())
            assert await stored(limited) == kept
            return kept

        assert await count_after(await a.post("/userdata/a.txt", content=b"x" * 300)) == 300
        assert await count_after(await a.post("/userdata/b.txt", content=b"x" * 100)) == 400
        assert await count_after(await a.post("/userdata/a.txt/move/c%2Fd.txt")) == 400
        assert await count_after(await a.post("/userdata/b.txt/move/c%2Fd.txt?overwrite=true")) == 100
        settings = await count_after(await a.post("/settings", json={"a": 1}))
        assert settings > 100
        assert (await a.post("/settings", json={"b": "y" * 1000})).status_code == 429
        assert await count_after(await a.get("/settings")) == settings
        assert await count_after(await a.delete("/userdata/c%2Fd.txt")) == settings - 100
