"""A scheduler that keeps the store as the database has it, also of jobs that ended in an earlier life."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.config import AppConfig
from serve_app.events import Failure
from serve_app.execution.files import NodeFiles
from serve_app.graph.plan import Pool
from serve_app.scheduler.housekeeping import tidying
from serve_app.scheduler.housekeeping.housekeeping import KeptFiles
from serve_app.scheduler.jobs.admission import AdmissionRules
from serve_app.scheduler.protocol.cluster_view import HostStats
from serve_app.scheduler.scheduler import Scheduler
from serve_app.store.database.changes import JobAccepted, JobEnded, JobRow, OutputRecorded
from serve_app.store.database.jobs import Jobs
from serve_app.store.files.reserved import Contents, shown
from serve_app.store.files.store import AREAS, FileRef
from serve_app.store.files.volume import Volume
from serve_app.store.page.assets import FOLDER, Asset, FindAssets, MintAsset
from serve_app.store.retention import sweep
from tests.unit.store import reserving

RULES = AdmissionRules.of(AppConfig())
ROW = JobRow("", 0.0, 0, {}, ("1",), None, {}, created_s=5.0, queued_seq=1)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tidying, "EVERY_S", 0.02)
    monkeypatch.setattr(tidying, "SETTLED_S", 0.0)


class Site:
    """A database and files."""

    def __init__(self, root: Path) -> None:
        self.url = f"sqlite:///{root}/jobs.sqlite"
        self.store = Volume({area: root / area for area in (*AREAS, "work")})

    def scheduler(self, holder: str) -> Scheduler:
        jobs = Jobs(self.url)
        host = HostStats("host", 1, 1, 1, ())
        return Scheduler(
            jobs,
            [Pool("cpu", False)],
            lambda *_: "",
            lambda: host,
            holder=holder,
            rules=RULES,
            max_attempts=3,
            silence_s=60,
            job_time_s=None,
            files=KeptFiles(self.store, temp_age_s=1e9),
        )

    def files(self) -> set[FileRef]:
        return {ref for area in AREAS for ref, _ in self.store.files(area)}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def saved(site: Site, jobs: Jobs, epoch: int, area: str = "output") -> tuple[str, dict[str, object]]:
    """Let a new job save one file; return its id and what its node shows."""
    row = replace(ROW, job_id=str(uuid.uuid4()), order=jobs.next_order())
    jobs.write(epoch, [JobAccepted(row)])

    async def reserve(key: str, at_least: int, contents: Contents) -> tuple[int, bool]:
        return reserving.reserve(jobs, epoch, row.job_id, "1", key, at_least, contents)

    images = await NodeFiles(site.store, row.job_id, "1", reserve).save(area, "x", ".png", [b"x"])  # type: ignore[arg-type]
    return row.job_id, {"images": images}


async def test_what_a_job_left_behind_is_gone_after_the_next_start_and_what_it_recorded_is_there(site):
    jobs = Jobs(site.url)
    epoch = jobs.acquire("earlier")
    (kept, kept_ui), (gone, _) = [await saved(site, jobs, epoch) for _ in range(2)]
    (stale, stale_ui), (needed, needed_ui) = [await saved(site, jobs, epoch, "temp") for _ in range(2)]
    jobs.write(epoch, [OutputRecorded(kept, "1", kept_ui, 3), JobEnded(kept, "success", 9.0, 4, Failure())])
    jobs.write(epoch, [JobEnded(gone, "cancelled", 9.0, 5, Failure())])
    jobs.write(epoch, [OutputRecorded(stale, "1", stale_ui, 6), JobEnded(stale, "success", 9.0, 7, Failure())])
    # Not planned again: there is no such node class. It is unfinished at the moment when the server starts.
    jobs.write(epoch, [OutputRecorded(needed, "2", needed_ui, 8)])
    expected = {*shown(kept_ui)}
    scheduler = site.scheduler("later")
    await scheduler.start()
    try:
        async with asyncio.timeout(60):
            while not site.files() <= expected | {*shown(needed_ui)} or jobs.unsettled(float("inf"), None):
                await asyncio.sleep(0.01)
        assert expected <= site.files()
    finally:
        await scheduler.close()
        jobs.close()


async def test_a_scheduler_that_merely_came_back_leaves_previews_alone(site):
    jobs = Jobs(site.url)
    _, ui = await saved(site, jobs, jobs.acquire("server"), "temp")
    (gone, _) = await saved(site, jobs, jobs.acquire("server"))
    jobs.write(2, [JobEnded(gone, "error", 9.0, 4, Failure())])
    scheduler = site.scheduler("server")
    await scheduler.start()
    try:
        async with asyncio.timeout(60):
            while jobs.unsettled(float("inf"), None):
                await asyncio.sleep(0.01)
        assert site.files() == {*shown(ui)}
    finally:
        await scheduler.close()
        jobs.close()


async def test_uploads_that_nobody_refers_to_go_while_a_server_runs_too(site, monkeypatch):
    monkeypatch.setattr(tidying, "LOOK_S", 0.02)
    monkeypatch.setattr(sweep, "UNFINISHED_S", 0.0)
    scheduler = site.scheduler("server")
    await scheduler.start()
    try:
        for _ in range(2):
            site.store.write(FileRef("input", FOLDER, f"{'a' * 64}-{'b' * 12}.png"), b"x")
            async with asyncio.timeout(60):
                while site.files():
                    await asyncio.sleep(0.01)
    finally:
        await scheduler.close()


async def test_bytes_go_with_the_last_asset_whose_time_is_over(site):
    jobs = Jobs(site.url)
    epoch = jobs.acquire("server")
    ref = FileRef("input", FOLDER, f"{'a' * 64}-{'b' * 12}.png")
    site.store.write(ref, b"x")
    now_s = time.time()
    for name, expires_s in (("soon", now_s + 0.2), ("later", now_s + 1.0)):
        kept = ("blake3:" + "a" * 64, "input", ref.path, 1, "image/png", name, (), now_s, expires_s)
        jobs.query(epoch, MintAsset(Asset(name, *kept), stored=True))
    scheduler = site.scheduler("server")
    await scheduler.start()
    try:
        async with asyncio.timeout(60):
            while jobs.query(0, FindAssets(("soon",))):
                await asyncio.sleep(0.01)
            # In this order: the file may go between the two.
            assert site.files() == {ref} or time.time() > now_s + 1.0
            while site.files():
                await asyncio.sleep(0.01)
        assert time.time() >= now_s + 1.0
    finally:
        await scheduler.close()
        jobs.close()
