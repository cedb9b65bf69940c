"""Deleting a job takes its files away, and nobody is given a result that names them any more."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from serve_app.config.pool import PoolConfig
from serve_app.scheduler.housekeeping import tidying
from serve_app.store.retention import retention
from tests.unit.replica.cluster import Cluster, cluster

POOLS = (PoolConfig(name="cpu", runtime=False, threads=1), PoolConfig(name="other", runtime=False, threads=1))
WORKFLOW: dict[str, Any] = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 7}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "out"}},
}


async def saved(running: Cluster) -> tuple[str, str]:
    """Run the workflow; return the job's id and the name of the file it shows."""
    view = await running.finish(await running.submit(WORKFLOW, ("2",)))
    assert view.state == "success"
    [image] = view.outputs["2"]["images"]
    return view.job_id, image["filename"]


def there(running: Cluster) -> list[str]:
    return sorted(path.name for path in running.config.output_dir.glob("*.png"))


async def test_a_file_goes_with_the_last_job_that_shows_it_and_is_then_made_anew(tmp_path: Path) -> None:
    async with cluster(tmp_path, POOLS) as running:
        first, name = await saved(running)
        second, same = await saved(running)
        assert (name, same) == ("out_00001_.png", name)
        assert await running.scheduler.remove([first]) == (1, ())
        assert there(running) == [name]
        third, made = await saved(running)
        assert there(running) == [name, made]
        assert made != name
        assert await running.scheduler.remove(None) == (2, ())
        assert there(running) == []
        assert (await running.scheduler.job(second), await running.scheduler.job(third)) == (None, None)
        _, again = await saved(running)
        assert there(running) == [again]


async def test_a_store_that_is_away_is_left_for_later(tmp_path: Path, monkeypatch) -> None:
    async with cluster(tmp_path, POOLS) as running:
        job_id, name = await saved(running)
        away = monkeypatch.context()
        with away as patch:
            patch.setattr(
                "serve_app.store.files.volume.Volume.delete", lambda *_: (_ for _ in ()).throw(OSError("away"))
            )
            assert await running.scheduler.remove([job_id]) == (1, ())
        assert there(running) == [name]
        await running.restart_scheduler()
        while there(running):
            await running.scheduler.housekeeping.doomed()


async def test_retention_deletes_jobs_and_files_while_jobs_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(retention, "SETTLED_S", -60.0)
    monkeypatch.setattr(tidying, "EVERY_S", 0.1)
    monkeypatch.setattr(tidying, "SETTLED_S", 0.0)
    kept = {"history": {"count": 1}, "outputs": {"count": 2}, "every_s": 0.1}
    async with cluster(tmp_path, POOLS, retention=kept) as running:
        jobs = []
        for color in range(4):
            workflow = {**WORKFLOW, "1": {**WORKFLOW["1"], "inputs": {**WORKFLOW["1"]["inputs"], "color": color}}}
            jobs.append((await running.finish(await running.submit(workflow, ("2",)))).job_id)
        async with asyncio.timeout(60):
            while len(there(running)) > 2 or any([await running.scheduler.job(job_id) for job_id in jobs[:3]]):
                await asyncio.sleep(0.05)
        assert await running.scheduler.job(jobs[3]) is not None
