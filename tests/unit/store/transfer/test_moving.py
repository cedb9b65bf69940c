"""A tenant is moved between databases whole, of either kind, with its waiting jobs, keys and counters, and once."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from serve_app.cli import main
from serve_app.errors import BackupError, StaleEpochError, TenantMoveError
from serve_app.events import Failure
from serve_app.store.database.changes import (
    Change,
    Claims,
    CountersReserved,
    JobAccepted,
    JobEnded,
    JobRow,
    JobStarted,
    OutputRecorded,
)
from serve_app.store.database.jobs import Jobs
from serve_app.store.database.schema import IDEMPOTENCY_KEYS, LABELS
from serve_app.store.database.webhooks import AddWebhook, Webhook
from serve_app.store.files.reserved import Contents
from serve_app.store.files.store import AREAS, FileRef
from serve_app.store.files.volume import Volume
from serve_app.store.tenants.api_keys import AddKey, ListKeys, minted
from serve_app.store.transfer.moving import SERVERS, export_tenant, import_tenant, tables_of
from serve_app.store.transfer.rows_file import TABLES
from tests.unit.store.retention.test_sweep import ROW

KEYS = {name: minted(name, "website", ("submit", "read"), None)[0] for name in ("studio", "other")}
PICTURE = FileRef("output", "@studio/sub", "ä.png")


@pytest.fixture
def other_url(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> str:
    """Another database, of the other kind."""
    if database_url.startswith("sqlite"):
        return str(request.getfixturevalue("postgres_server").database())
    return f"sqlite:///{tmp_path}/other.sqlite"


@pytest.fixture
def cells(database_url: str, other_url: str) -> Iterator[tuple[Jobs, Jobs]]:
    """Two databases: one with a tenant to move and another, one in which others have more jobs."""
    cells = Jobs(database_url), Jobs(other_url)
    for jobs, tenants in zip(cells, (("other", "studio"), ("third", "third", "third")), strict=True):
        epoch, places = jobs.acquire("server"), iter(range(100))
        for number, tenant in enumerate(tenants):
            rows = [row_of(f"{number}{what}@{tenant}", next(places), tenant) for what in ("ended", "waits", "front")]
            rows[2] = replace(rows[2], number=-float(rows[2].order))
            jobs.write(epoch, [change for row in rows for change in accepted(row)])
            jobs.write(epoch, [JobEnded(rows[0].job_id, "success", 9.5, 30, Failure())])
    for name, key in KEYS.items():
        cells[0].query(1, AddKey(key))
        cells[0].query(1, AddWebhook(Webhook(name, "https://example.org/", ("job.succeeded",), "", 5.0, name), 9))
    yield cells
    for jobs in cells:
        jobs.close()


def row_of(job_id: str, order: int, tenant: str) -> JobRow:
    labels = {"of": tenant}
    return replace(ROW, job_id=job_id, order=order, number=float(order), queued_seq=order, labels=labels, tenant=tenant)


def accepted(row: JobRow) -> Iterator[Change]:
    yield JobAccepted(row, Claims(key=row.job_id))
    if "ended" in row.job_id:
        yield CountersReserved(row.job_id, "1", f"output/@{row.tenant}/sub/a", 1, Contents(".png", ("d",)))
        yield JobStarted(row.job_id, 6.25, 10 + row.order)
        yield OutputRecorded(row.job_id, "1", {"images": ["x"]}, 20 + row.order)


def counts(jobs: Jobs, tenant: str) -> dict[str, int]:
    with jobs.reading() as connection:
        found = {
            table.name: connection.execute(sa.select(sa.func.count()).select_from(table).where(where)).scalar_one()
            for table, where in tables_of(tenant).items()
        }
    return {name: count for name, count in found.items() if count}


def ids(jobs: Jobs) -> list[str]:
    return [row.job_id for row in jobs.unfinished()]


def test_every_table_is_a_tenants_or_the_servers():
    """A new table must not be forgotten in a move."""
    assert {*tables_of("studio"), *SERVERS} == set(TABLES)


def test_all_of_a_tenant_is_then_in_the_other_database_alone_and_behind_what_waits_there(cells, store, tmp_path):
    here, there = cells
    file = tmp_path / "studio.gz"
    store.write(PICTURE, b"12345")
    before, others = counts(here, "studio"), counts(here, "other")
    old, ended = {row.job_id: row for row in here.unfinished()}, here.job("1ended@studio")
    assert before.keys() >= {"jobs", "labels", "outputs", "reservations", "webhooks", "counters", "api_keys"}

    assert export_tenant(here, "studio", file, store).files["output"] == 1
    assert (counts(here, "studio"), counts(here, "other")) == ({}, others)
    assert import_tenant(there, file, store).rows == before

    assert counts(there, "studio") == before
    waiting = ids(there)
    assert waiting[-2:] == ["1waits@studio", "1front@studio"]
    moved = {row.job_id: row for row in there.unfinished()}
    assert {
        name: (abs(row.number) == row.order, row.number < 0) for name, row in moved.items() if "studio" in name
    } == {
        "1waits@studio": (True, False),
        "1front@studio": (True, True),
    }
    for name in waiting[-2:]:
        row = moved[name]
        assert replace(row, order=old[name].order, number=old[name].number) == old[name]
    assert there.job("1ended@studio") == replace(ended, order=waiting_place(there), number=waiting_place(there))
    assert [key.key_id for key in there.query(0, ListKeys())] == [KEYS["studio"].key_id]
    with there.reading() as connection:
        places = sa.select(LABELS.c.order).where(LABELS.c.value == "studio").order_by(LABELS.c.order)
        assert list(connection.execute(places).scalars()) == [9, 10, 11]
        held = sa.select(IDEMPOTENCY_KEYS.c.holder).where(IDEMPOTENCY_KEYS.c.holder == "1waits@studio")
        assert connection.execute(held).scalar() == "1waits@studio"


def waiting_place(jobs: Jobs) -> int:
    """The place of the first of three jobs that came to three times three."""
    assert jobs.next_order() == 12
    return 9


def test_schedulers_of_both_databases_are_deposed_and_cursors_go_on_growing(cells, store, tmp_path):
    here, there = cells
    for _ in range(5):
        epoch = here.acquire("server")
    export_tenant(here, "studio", tmp_path / "studio.gz", store)
    import_tenant(there, tmp_path / "studio.gz", store)
    for jobs, old in ((here, epoch), (there, 1)):
        assert jobs.vacant()
        with pytest.raises(StaleEpochError):
            jobs.write(old, [JobEnded("0waits", "success", 9.9, 31, Failure())])
    assert there.acquire("server") > epoch
    assert not there.vacant()


def test_a_move_that_cannot_be_changes_nothing(cells, store, tmp_path, monkeypatch):
    here, there = cells
    file, before = tmp_path / "studio.gz", (ids(here), ids(there))
    for name, why in (("", "no tenant's name"), ("@x", "no tenant's name"), ("nobody", "nothing of a tenant")):
        with pytest.raises(TenantMoveError, match=why):
            export_tenant(here, name, file, store)
    with pytest.raises(OSError, match="folder"):
        export_tenant(here, "studio", tmp_path / "folder" / "studio.gz", store)
    assert (ids(here), here.vacant()) == (before[0], False)

    store.write(PICTURE, b"12345")
    export_tenant(here, "studio", file, store)
    elsewhere = Volume({area: tmp_path / "empty" / area for area in AREAS})
    with pytest.raises(TenantMoveError, match=r"1 stored files .* such as output/@studio/sub/ä.png: copy"):
        import_tenant(there, file, elsewhere)
    whole = gzip.decompress(file.read_bytes()).splitlines(keepends=True)
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(b"".join(whole[:-1])))
    for broken, why in ((cut, "ends too soon"), (tmp_path / "empty.gz", "is no tenant of")):
        broken.touch()
        with pytest.raises(BackupError, match=why):
            import_tenant(there, broken, store)
    assert (ids(there), there.vacant()) == (before[1], False)

    import_tenant(there, file, elsewhere, without_files=True)
    with pytest.raises(TenantMoveError, match="has a tenant 'studio' already"):
        import_tenant(there, file, store)
    assert len(ids(there)) == len(before[1]) + 2


def test_the_commands_move_a_tenant_from_one_configuration_to_another(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    urls = [f"sqlite:///{tmp_path}/{name}.sqlite" for name in ("north", "south")]
    for url in urls:
        Jobs(url).close()
    assert main(["keys", "create", "studio", "--database-url", urls[0]]) == 0
    assert main(["export-tenant", "studio", "studio.gz", "--database-url", urls[0]]) == 0
    assert main(["import-tenant", "studio.gz", "--database-url", urls[1]]) == 0
    capsys.readouterr()
    for url, keys in zip(urls, (0, 1), strict=True):
        assert main(["keys", "list", "--database-url", url]) == 0
        assert len(capsys.readouterr().out.splitlines()) == keys
    assert main(["import-tenant", "studio.gz", "--database-url", urls[1]]) != 0
    assert "already" in capsys.readouterr().err
