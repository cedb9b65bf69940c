"""New databases, those that Alembic brings up and those from before it end up alike and keep their jobs."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from serve_app.errors import ConfigError
from serve_app.store.database import migrations, schema
from serve_app.store.database.changes import JobRow
from serve_app.store.database.jobs import Jobs
from serve_app.store.database.schema import ADOPTED, JOBS, LEASE, METADATA, REVISION, REVISIONS

ROW: dict[str, Any] = {
    "job_id": "a",
    "number": 3.0,
    "order": 3,
    "state": "running",
    "client_id": "client",
    "prompt": '{"1": {"class_type": "X"}}',
    "targets": '["1"]',
    "extra_data": "{}",
    "created_s": 5.0,
    "started_s": 6.0,
    "failure": "{}",
    "queued_seq": 1,
    "started_seq": 2,
    "cached": "[]",
}
JOB = JobRow(
    "a",
    3.0,
    3,
    {"1": {"class_type": "X"}},
    ("1",),
    "client",
    {},
    created_s=5.0,
    queued_seq=1,
    state="running",
    started_s=6.0,
    started_seq=2,
)


def engine(url: str) -> sa.Engine:
    return sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))


def of_version(url: str, version: int) -> None:
    """Make a database with a job, as it was before Alembic kept its version."""
    opened = engine(url)
    with schema.alone(opened) as connection:
        REVISIONS.create(connection)
        schema.upgrade(connection, opened, "0001")
        REVISIONS.drop(connection)
        connection.exec_driver_sql("CREATE TABLE schema (version INTEGER NOT NULL)")
        connection.exec_driver_sql(f"INSERT INTO schema VALUES ({version})")
        connection.execute(sa.update(LEASE).values(epoch=7, holder="me", started_s=12.5))
        connection.execute(sa.insert(JOBS).values(ROW))
    opened.dispose()


def shape(url: str) -> str:
    """What a database is made of, as text."""
    opened = engine(url)
    inspector = sa.inspect(opened)
    tables = {
        name: {
            "columns": [(c["name"], str(c["type"]), c["nullable"], c["default"]) for c in inspector.get_columns(name)],
            "key": inspector.get_pk_constraint(name)["constrained_columns"],
            "unique": sorted(u["column_names"] for u in inspector.get_unique_constraints(name)),
            "indexes": sorted((i["name"] or "", i["column_names"]) for i in inspector.get_indexes(name)),
        }
        for name in sorted(inspector.get_table_names())
    }
    opened.dispose()
    return json.dumps(tables, indent=1)


def another(url: str, request: pytest.FixtureRequest, tmp_path: Any) -> str:
    """Return another empty database of the same kind."""
    if url.startswith("sqlite"):
        return f"sqlite:///{tmp_path}/another.sqlite"
    return str(request.getfixturevalue("postgres_server").database())


def test_a_database_that_alembic_makes_step_by_step_is_as_a_new_one(database_url, request, tmp_path):
    opened = engine(database_url)
    with schema.alone(opened) as connection:
        REVISIONS.create(connection)
        schema.upgrade(connection, opened)
    fresh = another(database_url, request, tmp_path)
    Jobs(fresh).close()
    assert shape(database_url) == shape(fresh)
    with opened.connect() as connection:
        assert connection.execute(sa.select(REVISIONS.c.version_num)).scalar_one() == REVISION
        assert connection.execute(sa.select(LEASE.c.epoch)).scalar_one() == 0
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    opened.dispose()


def test_the_newest_revision_is_the_one_that_new_databases_are_of():
    assert ScriptDirectory(migrations.__path__[0]).get_heads() == [REVISION]


def test_a_database_from_before_alembic_keeps_its_jobs_and_lease_and_becomes_as_a_new_one(
    database_url, request, tmp_path
):
    of_version(database_url, ADOPTED)
    jobs = Jobs(database_url)
    assert jobs.unfinished() == [JOB]
    assert jobs.started_s() == 12.5
    assert jobs.acquire("me") == 8
    jobs.close()
    fresh = another(database_url, request, tmp_path)
    Jobs(fresh).close()
    assert shape(database_url) == shape(fresh)


def test_one_of_an_earlier_version_is_left_alone_and_named(database_url):
    of_version(database_url, ADOPTED - 1)
    before = shape(database_url)
    with pytest.raises(ConfigError, match=f"of version {ADOPTED - 1}, from before the first release"):
        Jobs(database_url)
    assert shape(database_url) == before


def test_what_tenants_jobs_have_from_before_their_ids_were_their_own_stays_theirs(database_url):
    of_version(database_url, ADOPTED)
    opened = engine(database_url)
    rows = {
        "assets": "SELECT 'asset', NULL, 'output', 'x', 1, '', NULL, '[]', 1, NULL, NULL, 'b', '1', 'studio', '', NULL",
        "deliveries": "SELECT 'd', 'hook', 'b', 4, '', '', 'pending', 0, 1, 1, NULL, NULL, ''",
        "outputs": "SELECT 'b', '1', '{}', 4",
        "asset_uses": "SELECT 'b', 'asset'",
        "idempotency_keys": "SELECT 'b', 'key', 1, 'studio' UNION ALL SELECT 'asset', 'other', 1, 'studio'",
        "reservations": "SELECT 'b', '1', 'output/x', 7, 1, '', '[]'",
    }
    with opened.begin() as connection:
        connection.execute(sa.insert(JOBS).values({**ROW, "job_id": "b", "number": 4, "order": 4, "tenant": "studio"}))
        for table, values in rows.items():
            connection.exec_driver_sql(f"INSERT INTO {table} {values}")
    jobs = Jobs(database_url)
    assert [(job.job_id, sorted(job.outputs)) for job in jobs.unfinished()] == [("a", []), ("b@studio", ["1"])]
    with opened.connect() as connection:
        for table in ("asset_uses", "assets", "deliveries", "reservations"):
            assert connection.exec_driver_sql(f"SELECT job_id FROM {table}").scalars().all() == ["b@studio"]
        holders = connection.exec_driver_sql("SELECT holder FROM idempotency_keys").scalars().all()
        assert sorted(holders) == ["asset", "b@studio"]
    jobs.close()
    opened.dispose()


def test_opening_again_changes_nothing(database_url):
    Jobs(database_url).close()
    before = shape(database_url)
    jobs = Jobs(database_url)
    assert jobs.acquire("me") == 1
    jobs.close()
    assert shape(database_url) == before


def test_processes_that_open_an_older_database_at_once_change_it_once(database_url):
    of_version(database_url, ADOPTED)
    opened: list[Jobs] = []
    threads = [threading.Thread(target=lambda: opened.append(Jobs(database_url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [jobs.unfinished() for jobs in opened] == [[JOB]] * 4
    for jobs in opened:
        jobs.close()


def test_a_database_of_a_newer_release_is_left_alone(database_url):
    Jobs(database_url).close()
    opened = engine(database_url)
    with opened.begin() as connection:
        connection.execute(sa.update(REVISIONS).values(version_num="9999"))
    before = shape(database_url)
    with pytest.raises(ConfigError, match="may be of a newer release"):
        Jobs(database_url)
    assert shape(database_url) == before
    opened.dispose()
