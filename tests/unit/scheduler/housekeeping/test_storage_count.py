"""What tenants have stored is counted from what jobs save, what is deleted here, and all files now and then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.scheduler.durability.lease import SchedulerLease
from serve_app.scheduler.housekeeping import storage_count
from serve_app.scheduler.housekeeping.expiry import Expiry
from serve_app.scheduler.housekeeping.storage_count import StorageCount
from serve_app.store.database.jobs import Jobs
from serve_app.store.files.store import AREAS, FileRef, WholeStore
from serve_app.store.files.volume import Volume
from serve_app.store.page.userdata import UserData
from serve_app.store.retention.rules import RetentionBounds, RetentionRules
from serve_app.store.retention.sweep import Sweep
from serve_app.store.tenants.stored_bytes import NoteFiles, StoredBytes, name_of
from serve_app.store.tenants.tenants import TenantStore

PICTURE = FileRef("output", "sub", "a.png")
UI = {"images": [{"filename": "a.png", "subfolder": "sub", "type": "output"}]}


class Site:
    """A database, a store and the count of what is in it."""

    def __init__(self, store: WholeStore, root: Path, *, needed: bool = True) -> None:
        self.store, self.jobs = store, Jobs(f"sqlite:///{root}/jobs.sqlite")
        self.lease = SchedulerLease(self.jobs, "test", in_database)
        self.lease.epoch = self.jobs.acquire("test")
        self.user_data = UserData(root / "user")
        self.studio = TenantStore(store, "studio")
        self.count = StorageCount(needed, self.jobs, store, self.user_data, self.lease, in_database)

    def stored(self, tenant: str = "studio") -> int:
        return self.jobs.query(self.lease.epoch, StoredBytes(tenant))


async def in_database(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


@pytest.fixture
def site(store: WholeStore, tmp_path: Path) -> Iterator[Site]:
    made = Site(store, tmp_path)
    yield made
    made.jobs.close()


async def test_all_files_of_each_tenant_count_from_the_first_look_on_and_the_operators_do_not(site: Site) -> None:
    for area in AREAS:
        site.studio.write(FileRef(area, "", "x.png"), b"123")
    TenantStore(site.store, "other").write(PICTURE, b"12345")
    site.store.write(PICTURE, b"operator")
    site.user_data.within("studio").write("default", "a.json", b"1234567", replace=True)
    site.user_data.write("default", "a.json", b"operator", replace=True)
    await site.count.once()
    assert (site.stored(), site.stored("other"), site.stored("")) == (16, 5, 0)


async def test_what_a_job_saves_and_what_is_deleted_is_noted_without_looking_at_all_files(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.count.once()
    monkeypatch.setattr(site.store, "inventory", None)
    site.studio.write(PICTURE, b"12345")
    site.count.saved(UI, "studio")
    site.count.saved(UI, "")
    await site.count.once()
    assert (site.stored(), site.stored("")) == (5, 0)
    sweep = Sweep(site.jobs, site.store, 1.0, site.count.deleted)
    sweep.doomed((("output", "@studio/sub/a.png"),))
    await site.count.once()
    assert site.stored() == 0


async def test_retention_gives_bytes_back(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.store.retention.retention.SETTLED_S", -60.0)
    site.studio.write(PICTURE, b"12345")
    await site.count.once()

    async def forgotten(_: Any) -> None: ...

    async def stamp(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    expiry = Expiry(
        RetentionRules({"outputs": RetentionBounds(count=0)}),
        site.jobs,
        site.store,
        site.lease,
        stamp,
        forgotten=forgotten,
        forget_files=forgotten,
        deleted=site.count.deleted,
    )
    assert site.stored() == 5
    await expiry.once()
    await site.count.once()
    assert site.stored() == 0
    assert list(site.store.files("output")) == []


async def test_the_next_look_corrects_what_nobody_noted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.studio.write(PICTURE, b"12345")
    await site.count.once()
    site.studio.write(FileRef("output", "", "by-a-pack.bin"), b"123")
    site.studio.delete(PICTURE)
    wrong = NoteFiles({name_of("input", "@studio/never.png"): 1000}, "studio")
    site.jobs.query(site.lease.epoch, wrong)
    await site.count.once()
    assert site.stored() == 1005
    monkeypatch.setattr(storage_count, "COUNT_S", 0.0)
    await site.count.once()
    assert site.stored() == 3


async def test_where_nobody_has_a_quota_of_bytes_nothing_is_counted_and_an_older_count_goes(tmp_path: Path) -> None:
    store = Volume({area: tmp_path / area for area in AREAS})
    site = Site(store, tmp_path, needed=False)
    site.jobs.query(site.lease.epoch, NoteFiles({"x": 5}, "studio"))
    site.studio.write(PICTURE, b"12345")
    site.count.saved(UI, "studio")
    async with asyncio.timeout(60):
        await site.count.run()
    assert site.stored() == 0
    site.jobs.close()


async def test_what_could_not_be_noted_is_noted_the_next_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    await site.count.once()
    site.studio.write(PICTURE, b"12345")
    site.count.saved(UI, "studio")

    def away(*_: Any) -> Any:
        raise OSError("away")

    with monkeypatch.context() as patch:
        patch.setattr(site.jobs, "query", away)
        with pytest.raises(OSError, match="away"):
            await site.count.once()
    await site.count.once()
    assert site.stored() == 5
