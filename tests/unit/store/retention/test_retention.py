"""What is beyond its bounds goes and nothing else, of either database and either store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from serve_app.errors import StaleEpochError
from serve_app.events import Failure
from serve_app.scheduler.durability.lease import SchedulerLease
from serve_app.scheduler.housekeeping.expiry import Expiry
from serve_app.store.database.changes import Claims, JobAccepted, JobEnded
from serve_app.store.database.jobs import Jobs
from serve_app.store.files.s3 import S3
from serve_app.store.files.store import AREAS, FileRef, WholeStore
from serve_app.store.files.volume import Volume
from serve_app.store.retention import removal, retention
from serve_app.store.retention.named_files import StoredPath
from serve_app.store.retention.retention import HistoryCut
from serve_app.store.retention.rules import KINDS, RetentionBounds, RetentionRules
from tests.unit.store.retention.test_sweep import ROW

DAY_S = 86_400.0


class Site:
    """A database and a store, what is let go of, and what the scheduler is told of that."""

    def __init__(self, url: str, store: WholeStore) -> None:
        self.jobs, self.store = Jobs(url), store
        self.epoch = self.jobs.acquire("test")
        self.forgotten: list[str] = []
        self.named: list[StoredPath] = []

    def ended(self, job_id: str, ago_s: float = 0.0, tenant: str = "", **fields: Any) -> None:
        order = self.jobs.next_order()
        claims = fields.pop("claims", Claims())
        row = replace(ROW, job_id=job_id, order=order, queued_seq=order, tenant=tenant, created_s=time.time(), **fields)
        end = JobEnded(job_id, "success", time.time() - ago_s, 1000 + order, Failure())
        self.jobs.write(self.epoch, [JobAccepted(row, claims), end])

    def left(self) -> list[str]:
        with self.jobs.reading() as connection:
            return [*connection.exec_driver_sql('SELECT job_id FROM jobs ORDER BY "order"').scalars()]

    def file(self, path: str, content: bytes = b"x") -> None:
        area, _, rest = path.partition("/")
        self.store.write(FileRef.parse(f"{rest} [{area}]"), content)

    def files(self) -> set[str]:
        return {f"{area}/{ref.path}" for area in AREAS for ref, _, _ in self.store.inventory(area)}

    def expire(self, rules: RetentionRules) -> None:
        async def forgotten(job_ids: Sequence[str]) -> None:
            self.forgotten += job_ids

        async def forget_files(files: Sequence[StoredPath]) -> None:
            assert {f"{area}/{path}" for area, path in files} <= self.files(), "they are forgotten before they are gone"
            self.named += files

        async def in_database(function: Any, *arguments: Any) -> Any:
            return await asyncio.to_thread(function, *arguments)

        async def once() -> None:
            lease = SchedulerLease(self.jobs, "test", in_database)
            lease.epoch = self.epoch
            told = {"forgotten": forgotten, "forget_files": forget_files}
            await Expiry(rules, self.jobs, self.store, lease, in_database, **cast(Any, told)).once()

        asyncio.run(once())


@pytest.fixture
def site(database_url: str, tmp_path: Path) -> Iterator[Site]:
    made = Site(database_url, Volume({area: tmp_path / area for area in AREAS}))
    yield made
    made.jobs.close()


@pytest.fixture
def filed(store: WholeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(retention, "SETTLED_S", -60.0)
    made = Site(f"sqlite:///{tmp_path}/jobs.sqlite", store)
    yield made
    made.jobs.close()


def history(**bounds: Any) -> RetentionRules:
    return RetentionRules({"history": RetentionBounds(**bounds)})


def test_old_jobs_go_in_portions_and_unfinished_ones_stay(site, monkeypatch):
    for name in (removal, retention):
        monkeypatch.setattr(name, "PORTION", 2)
    monkeypatch.setattr("serve_app.scheduler.housekeeping.expiry.PORTION", 2)
    for number in range(5):
        site.ended(f"old{number}", 3 * DAY_S)
    site.ended("new", DAY_S)
    site.jobs.write(site.epoch, [JobAccepted(replace(ROW, job_id="waits", order=99, queued_seq=99))])
    site.expire(history(age_s=2 * DAY_S))
    assert site.left() == ["new", "waits"]
    assert site.forgotten == [f"old{number}" for number in range(5)]


def test_the_newest_of_each_tenant_stay_and_one_tenant_has_bounds_of_its_own(site):
    for number in range(3):
        for tenant in ("", "acme", "big"):
            site.ended(f"{tenant}{number}", tenant=tenant)
    rules = RetentionRules({"history": RetentionBounds(count=1)}, {"big": {"history": RetentionBounds(count=2)}})
    site.expire(rules)
    assert sorted(site.left()) == ["2", "acme2", "big1", "big2"]


def test_the_newest_stay_whose_texts_fit(site):
    for number in range(4):
        site.ended(str(number), prompt={"1": "x" * 1000})
    site.expire(history(bytes=2500))
    assert site.left() == ["2", "3"]


def test_a_job_stays_while_its_idempotency_key_is_its_own(site):
    site.ended("keyed", 3 * DAY_S, claims=Claims(key="k"))
    site.ended("plain", 3 * DAY_S)
    site.expire(history(age_s=1.0))
    assert site.left() == ["keyed"]


def test_no_bound_lets_nothing_go(site):
    site.ended("old", 1e9)
    site.file("output/x.png")
    site.expire(RetentionRules())
    assert (site.left(), site.files()) == (["old"], {"output/x.png"})
    assert not RetentionRules({"temp": RetentionBounds()}).concern(*KINDS)
    assert site.jobs.query(0, HistoryCut("", RetentionBounds(), time.time())) is None


def test_an_older_scheduler_lets_nothing_go(site, monkeypatch):
    monkeypatch.setattr(retention, "SETTLED_S", -60.0)
    site.ended("old", 1e9)
    site.file("output/x.png")
    site.jobs.acquire("newer")
    for rules in (history(age_s=1.0), RetentionRules({"outputs": RetentionBounds(count=0)})):
        with pytest.raises(StaleEpochError):
            site.expire(rules)
    assert (site.left(), site.files()) == (["old"], {"output/x.png"})


def test_each_kind_of_file_has_its_own_bounds(filed):
    names = ["output/a.png", "input/b.png", "temp/c_abcdefghijkl_00001_.png", "temp/d.png"]
    for name in names:
        filed.file(name)
    for kind, name in zip(("outputs", "uploads", "previews", "temp"), list(names), strict=True):
        filed.expire(RetentionRules({cast(Any, kind): RetentionBounds(count=0)}))
        names.remove(name)
        assert filed.files() == {*names}
    assert len(filed.named) == 4


def test_the_newest_files_stay_by_count_and_by_bytes(filed):
    for number in range(4):
        filed.file(f"output/sub/{number}.png", b"x" * 100)
        time.sleep(1.1 if isinstance(filed.store, S3) else 0.02)  # a bucket tells whole seconds
    filed.expire(RetentionRules({"outputs": RetentionBounds(count=3)}))
    assert filed.files() == {f"output/sub/{number}.png" for number in (1, 2, 3)}
    filed.expire(RetentionRules({"outputs": RetentionBounds(bytes=250)}))
    assert filed.files() == {f"output/sub/{number}.png" for number in (2, 3)}


def test_a_tenants_files_are_counted_apart(filed):
    for name in ("output/a.png", "output/@acme/a.png", "output/@big/a.png", "input/@acme/assets/hash"):
        filed.file(name)
    none, tenant = RetentionBounds(count=0), {"big": {"outputs": RetentionBounds(count=1)}}
    filed.expire(RetentionRules({"outputs": none, "uploads": none}, cast(Any, tenant)))
    assert filed.files() == {"output/@big/a.png", "input/@acme/assets/hash"}


def test_what_an_unfinished_job_reads_stays_and_so_do_assets_and_what_is_half_written(filed):
    filed.file("input/read.png")
    filed.file("input/gone.png")
    filed.file("input/assets/0.png")
    filed.file("input/.half.part")
    prompt = {"1": {"class_type": "LoadImage", "inputs": {"image": "read.png"}}}
    filed.jobs.write(filed.epoch, [JobAccepted(replace(ROW, job_id="a", prompt=prompt))])
    filed.expire(RetentionRules({"uploads": RetentionBounds(age_s=-60.0)}))
    assert "input/gone.png" not in filed.files()
    assert filed.files() == {"input/read.png", "input/assets/0.png", "input/.half.part"}


def test_what_has_just_been_written_may_not_be_recorded_yet_and_stays(filed, monkeypatch):
    monkeypatch.setattr(retention, "SETTLED_S", 60.0)
    filed.file("output/a.png")
    filed.expire(RetentionRules({"outputs": RetentionBounds(count=0)}))
    assert filed.files() == {"output/a.png"}
