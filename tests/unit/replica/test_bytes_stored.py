"""A whole cluster counts what its tenants' jobs save, on a volume and in a bucket, and gives it back with the jobs."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any

import pytest

from serve_app.config.quotas import Quota, Quotas
from serve_app.config.storage import S3Config
from serve_app.errors import QuotaError
from serve_app.scheduler.housekeeping import storage_count
from serve_app.scheduler.protocol.client import JobView
from serve_app.store.database.changes import Submission
from serve_app.store.tenants.stored_bytes import StoredBytes
from tests.unit.replica.cluster import Cluster, cluster
from tests.unit.replica.test_bucket import CPU, drawing, place

QUOTAS = Quotas(tenants={"a": Quota(bytes_stored=1500)})


@pytest.fixture(params=["volume", "s3"])
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "volume":
        return {}
    return {"store": place(request.getfixturevalue("bucket"), S3Config, kind="s3")}


async def run(running: Cluster, color: int, tenant: str = "a") -> JobView:
    job_id = str(uuid.uuid4())
    await running.scheduler.submit(Submission(job_id, drawing(color), ("2",), tenant=tenant))
    view = await running.finish(job_id)
    assert view.state == "success"
    return view


async def until_stored(running: Cluster, expected: int) -> None:
    """Return once the count is what it must be."""
    async with asyncio.timeout(120):
        while await running.scheduler.query(StoredBytes("a")) != expected:
            await asyncio.sleep(0.01)


def size(running: Cluster) -> int:
    """How many bytes lie in the tenant's folders."""
    assert running.scheduler.files is not None
    store = running.scheduler.files.store
    areas = [store.inventory(area) for area in ("input", "output", "temp")]  # type: ignore[arg-type]
    return sum(size for area in areas for ref, size, _ in area if ref.subfolder.startswith("@a"))


async def test_what_jobs_save_is_counted_and_given_back_with_them_and_over_a_restart(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_count, "EVERY_S", 0.01)
    async with cluster(tmp_path, CPU, tenants={}, quotas=QUOTAS, **settings) as running:
        made = [await run(running, color) for color in (1, 2, 3)]
        await run(running, 4, tenant="b")
        assert size(running) > 1500
        await until_stored(running, size(running))
        with pytest.raises(QuotaError, match=r"has stored \d+ bytes; its quota 'bytes_stored' allows 1500"):
            await run(running, 5)
        await running.restart_scheduler()
        await run(running, 6, tenant="b")
        await until_stored(running, size(running))
        assert await running.scheduler.remove([view.job_id for view in made[:2]], "a") == (2, ())
        await until_stored(running, size(running))
        assert 0 < size(running) < 1500
        await run(running, 7)
        await until_stored(running, size(running))
        assert await running.scheduler.remove(None, "a") == (2, ())
        assert size(running) == 0
        await until_stored(running, 0)
