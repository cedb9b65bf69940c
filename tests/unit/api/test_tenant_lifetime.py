"""What becomes of two tenants' jobs and files of the same names, on either database and either store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.store.database.jobs import Jobs
from serve_app.store.retention import retention
from serve_app.store.retention.rules import RetentionBounds, RetentionRules
from serve_app.store.tenants.tenants import job_id_of
from serve_app.store.transfer.backup import restore_backup, write_backup
from tests.unit.api.tenant_world import PICTURE, World, world

KEPT = ("/history", "/api/assets?tags_any=output,input", "/api/webhooks", "/settings", "/userdata?dir=notes")
"""Where a tenant sees what outlives its server."""


@pytest.fixture
def other_url(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> str:
    """The URL of a database of the other kind."""
    if database_url.startswith("postgresql"):
        return f"sqlite:///{tmp_path}/other.sqlite"
    return str(request.getfixturevalue("postgres_server").database())


@asynccontextmanager
async def two(root: Path, **options: Any) -> AsyncIterator[tuple[World, httpx.AsyncClient, httpx.AsyncClient]]:
    """Yield a server, and a client of each of its tenants."""
    async with world(root, **options) as made, made.client(made.keys["a"]) as a, made.client(made.keys["b"]) as b:
        yield made, a, b


async def until(look: Callable[[], Any]) -> None:
    """Return once `look` answers something true."""
    async with asyncio.timeout(60):
        while not await look():
            await asyncio.sleep(0.05)


async def shows(client: httpx.AsyncClient, picture: str) -> bool:
    answer = await client.get(f"/view?filename={picture}")
    assert answer.status_code in (200, 404)
    return answer.status_code == 200 and answer.content == PICTURE


async def test_a_tenant_deletes_a_job_with_its_files_and_nobody_elses(tmp_path, database_url, store):
    async with two(tmp_path, database_url=database_url, store=store) as (made, a, b):
        theirs = await made.fill(a, "a")
        await made.replica.succeed(job_id_of(theirs.running, "a"), {})
        await made.replica.succeed(job_id_of(theirs.waiting, "a"), {})
        own = await made.fill(b, "b")
        assert own.picture == theirs.picture
        before = await made.seen(a)
        assert (await b.delete(f"/jobs/{theirs.job}")).status_code == 404
        assert (await b.delete(f"/jobs/{own.running}")).status_code == 409
        assert (await b.delete(f"/jobs/{own.job}")).json() == {"deleted": True}
        assert not await shows(b, own.picture)
        assert (await b.get(f"/api/jobs/{own.job}")).status_code == 404
        assert await shows(a, theirs.picture)
        gone = await b.post("/history", json={"clear": True, "delete_files": True})
        assert gone.status_code == 200
        assert await made.seen(a) == before
    left = {f"{ref.subfolder}/{ref.filename}" for ref, _ in store.files("output")}
    assert left == {f"@a/{theirs.picture}"}


async def test_a_tenant_that_keeps_less_loses_its_own_alone(tmp_path, database_url, store, monkeypatch):
    monkeypatch.setattr(retention, "SETTLED_S", -60.0)
    nothing = RetentionBounds(count=0)
    rules = RetentionRules({}, {"b": {"history": nothing, "outputs": nothing, "uploads": nothing}}, every_s=0.2)
    async with two(tmp_path, database_url=database_url, store=store) as (made, a, b):
        theirs = await made.fill(a, "a")
        await made.replica.succeed(job_id_of(theirs.running, "a"), {})
        await made.replica.succeed(job_id_of(theirs.waiting, "a"), {})
        own = await made.fill(b, "b")
        before = await made.seen(a)
    async with two(tmp_path, database_url=database_url, store=store, retention=rules) as (made, a, b):

        async def gone() -> bool:
            uploads = {ref.subfolder for ref, _ in store.files("input")}
            history = (await b.get("/history")).json()
            return history == {} and not await shows(b, own.picture) and "@b" not in uploads

        await until(gone)
        # What has not ended stays, and so does what other rules remove.
        assert len((await b.get("/api/jobs")).json()["jobs"]) == 2
        assert (await b.get(f"/api/assets/{own.asset}/content")).status_code == 200
        assert await made.seen(a) == before
        assert await shows(a, theirs.picture)


async def test_a_restored_server_gives_each_tenant_what_it_had(tmp_path, database_url, other_url, store):
    copy = tmp_path / "copy.gz"
    seen: dict[str, list[str]] = {}
    async with world(tmp_path, database_url=database_url, store=store) as made:
        keys = dict(made.keys)
        for tenant in ("a", "b"):
            async with made.client(keys[tenant]) as client:
                has = await made.fill(client, tenant)
                await made.replica.succeed(job_id_of(has.running, tenant), {})
                await made.replica.start(job_id_of(has.waiting, tenant))
                seen[tenant] = [(await client.get(path)).text for path in KEPT]
        reading = Jobs(database_url)
        await asyncio.to_thread(write_backup, reading, copy, store)
        reading.close()
    other = Jobs(other_url)
    assert restore_backup(other, copy, store, replace=False, keep_keys=True).absent == ()
    other.close()
    async with world(tmp_path, database_url=other_url, store=store) as made:
        for tenant in ("a", "b"):
            async with made.client(keys[tenant]) as client:
                assert [(await client.get(path)).text for path in KEPT] == seen[tenant]
                assert await shows(client, "drawn_00001_.png")
                [unfinished] = (await client.get("/api/jobs?status=in_progress")).json()["jobs"]
                await made.replica.succeed(job_id_of(unfinished["id"], tenant), {})
                assert (await client.get(f"/api/jobs/{unfinished['id']}")).json()["status"] == "completed"
