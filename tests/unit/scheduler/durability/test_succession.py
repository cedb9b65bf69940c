"""Servers that share a database: the newer one works, the older one waits, and works again when that has gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from serve_app.config import AppConfig
from serve_app.errors import DatabaseGoneError, DrainingError, NotReadyError
from serve_app.graph.plan import Pool
from serve_app.graph.spec import NodeSpec
from serve_app.scheduler.durability import lease, succession, writer
from serve_app.scheduler.durability.succession import Succession
from serve_app.scheduler.jobs.admission import AdmissionRules
from serve_app.scheduler.protocol.client import Accepted, QueueBounds
from serve_app.scheduler.protocol.cluster_view import HostStats
from serve_app.scheduler.protocol.messages import ReplicaInfo
from serve_app.scheduler.scheduler import Scheduler
from serve_app.store.database.changes import Submission
from serve_app.store.database.jobs import Jobs
from serve_app.store.database.schema import REVISIONS
from serve_app.store.files.store import AREAS
from serve_app.store.files.volume import Volume
from serve_app.store.tenants.tenants import tenant_of
from serve_app.store.transfer.moving import export_tenant, import_tenant

EVERY = QueueBounds(1000, 1_000_000)

RULES = AdmissionRules.of(AppConfig())
HOST = HostStats("host", 1, 1, 1, ())
SPEC = NodeSpec("Save", (), (), (), (), output_node=True)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.05)
    monkeypatch.setattr(lease, "EXPIRES_S", 2.0)
    monkeypatch.setattr(succession, "AGAIN_S", 0.05)
    monkeypatch.setattr(writer, "FIRST_DELAY_S", 0.01)


@contextlib.asynccontextmanager
async def server(url: str, name: str) -> AsyncIterator[Succession]:
    made = Succession(
        lambda: Scheduler(
            Jobs(url),
            [Pool("cpu", False)],
            lambda *_: "",
            lambda: HOST,
            holder=name,
            rules=RULES,
            max_attempts=3,
            silence_s=60,
            job_time_s=None,
        ),
    )
    try:
        async with asyncio.timeout(120):
            yield made
    finally:
        await made.close()


async def submitted(server: Succession, job_id: str) -> Accepted:
    """Submit a job that waits, for the one replica has no slot."""
    scheduler = await server.scheduler()
    with contextlib.suppress(NotReadyError):
        if "Save" in await scheduler.specs():
            return await scheduler.submit(submission(job_id))
    await scheduler.registry.join(ReplicaInfo("replica", "cpu", slots=0), [SPEC], HOST)
    return await scheduler.submit(submission(job_id))


def submission(job_id: str) -> Submission:
    return Submission(job_id, {"1": {"class_type": "Save", "inputs": {}}}, ("1",), tenant=tenant_of(job_id))


async def works(server: Succession) -> Scheduler:
    while True:
        with contextlib.suppress(DrainingError):
            return await server.scheduler()
        await asyncio.sleep(0.02)


async def test_the_older_server_notices_without_being_asked_and_works_on_when_the_newer_has_gone(database_url, caplog):
    async with server(database_url, "older") as older:
        await submitted(older, "a")
        first = await older.scheduler()
        async with server(database_url, "newer") as newer:
            second = await newer.scheduler()
            await first.fenced.wait()
            for _ in range(3):
                with pytest.raises(DrainingError, match="goes on when that has ended"):
                    await older.scheduler()
            await submitted(newer, "b")
            # As long as the newer one lives, the older one waits.
            await asyncio.sleep(2 * lease.EXPIRES_S)
            with pytest.raises(DrainingError):
                await older.scheduler()
            assert not second.fenced.is_set()
        third = await works(older)
        assert {job.job_id for job in (await third.queue(EVERY)).pending} == {"a", "b"}
        assert third.epoch > second.epoch > first.epoch
        assert (await submitted(older, "c")).job_id == "c"
    said = [record for record in caplog.records if "no longer holds" in record.getMessage()]
    assert len(said) == 1


async def test_a_server_that_comes_back_while_the_older_one_works_takes_over_again(database_url):
    async with server(database_url, "older") as older:
        first = await older.scheduler()
        async with server(database_url, "newer") as newer:
            await newer.scheduler()
            await first.fenced.wait()
            with pytest.raises(DrainingError):
                await older.scheduler()
        working = await works(older)
        async with server(database_url, "newer") as newer:
            assert (await newer.scheduler()).epoch > working.epoch
            await working.fenced.wait()


async def test_a_tenants_waiting_jobs_move_between_two_working_servers_which_go_on_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "EXPIRES_S", 3600.0)
    urls = [f"sqlite:///{tmp_path}/{name}.sqlite" for name in ("north", "south")]
    store, file = Volume({area: tmp_path / area for area in AREAS}), tmp_path / "studio.gz"
    async with server(urls[0], "north") as north, server(urls[1], "south") as south:
        for job_id in ("a", "b@studio", "c@studio"):
            await submitted(north, job_id)
        for number in range(5):
            await submitted(south, f"earlier {number}")
        before = [await each.scheduler() for each in (north, south)]
        admin = [Jobs(url) for url in urls]
        await asyncio.to_thread(export_tenant, admin[0], "studio", file, store)
        await asyncio.to_thread(import_tenant, admin[1], file, store)
        for scheduler in before:
            await scheduler.fenced.wait()
        after = [await works(each) for each in (north, south)]
        assert await waiting(after[0]) == ["a"]
        assert (await waiting(after[1]))[5:] == ["b@studio", "c@studio"]
        await submitted(south, "d@studio")
        assert (await waiting(await works(south)))[5:] == ["b@studio", "c@studio", "d@studio"]
        for jobs in admin:
            jobs.close()


async def waiting(scheduler: Scheduler) -> list[str]:
    return [job.job_id for job in (await scheduler.queue(EVERY)).pending]


@pytest.mark.parametrize("wrong", ["damaged", "newer"])
async def test_a_database_that_cannot_be_opened_is_said_once_and_used_once_it_can(tmp_path, caplog, wrong):
    path = tmp_path / "jobs.sqlite"
    url = f"sqlite:///{path}"
    Jobs(url).close()
    good = path.read_bytes()
    if wrong == "damaged":
        path.write_bytes(b"x" * len(good))
    else:
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            connection.execute(sa.update(REVISIONS).values(version_num="9999"))
        engine.dispose()
    async with server(url, "me") as me:
        for _ in range(20):
            with pytest.raises(NotReadyError, match="cannot start: the database"):
                await me.scheduler()
            await asyncio.sleep(0.01)
        path.write_bytes(good)
        await asyncio.sleep(2 * succession.AGAIN_S)
        assert (await submitted(me, "a")).job_id == "a"
    said = [record for record in caplog.records if "cannot start" in record.getMessage()]
    assert len(said) == 1


async def test_jobs_accepted_before_and_after_the_database_is_deleted_are_there_after_a_restart(tmp_path, caplog):
    path = tmp_path / "jobs.sqlite"
    async with server(f"sqlite:///{path}", "me") as me:
        for n in range(5):
            await submitted(me, str(n))
            path.unlink()
    async with server(f"sqlite:///{path}", "me") as me:
        scheduler = await me.scheduler()
        assert sorted(job.job_id for job in (await scheduler.queue(EVERY)).pending) == list("01234")


async def test_nothing_is_accepted_while_another_file_is_in_the_databases_place(tmp_path, caplog):
    path = tmp_path / "jobs.sqlite"
    caplog.set_level(logging.WARNING)
    async with server(f"sqlite:///{path}", "me") as me:
        await submitted(me, "a")
        replaced(path)
        for _ in range(5):
            with pytest.raises(DatabaseGoneError, match="replaced by another file"):
                await submitted(me, "b")
            await asyncio.sleep(0.1)
        scheduler = await me.scheduler()
        assert [job.job_id for job in (await scheduler.queue(EVERY)).pending] == ["a"]
    said = [r.getMessage() for r in caplog.records if "replaced by another file" in r.getMessage()]
    # Once; and once more when a copy has been written, if it is noticed before.
    assert 1 <= len(said) == len(set(said)) <= 2


def replaced(path: Path) -> None:
    for name in ("", "-wal", "-shm"):
        path.with_name(path.name + name).unlink()
    Jobs(f"sqlite:///{path}").close()
