"""Databases of every version open, keep their jobs, and end up like a new one."""

from __future__ import annotations

import json
import threading

import pytest
import sqlalchemy as sa

from serve_app.errors import ConfigError
from serve_app.store.database.changes import JobRow
from serve_app.store.database.jobs import Jobs
from serve_app.store.database.schema import SCHEMA, VERSION, steps
from serve_app.store.files.reserved import Contents
from tests.unit.store.reserving import reserve

FIRST = """
CREATE TABLE lease (name VARCHAR(32) NOT NULL PRIMARY KEY, epoch BIGINT NOT NULL, holder VARCHAR(255) NOT NULL,
                    first_start_s FLOAT NOT NULL);
CREATE TABLE jobs (job_id VARCHAR(64) NOT NULL PRIMARY KEY, number FLOAT NOT NULL, "order" BIGINT NOT NULL UNIQUE,
                   state VARCHAR(16) NOT NULL, client_id TEXT, prompt TEXT NOT NULL, targets TEXT NOT NULL,
                   extra_data TEXT NOT NULL, created_s FLOAT NOT NULL, started_s FLOAT, ended_s FLOAT,
                   failure TEXT NOT NULL, queued_seq BIGINT NOT NULL, started_seq BIGINT, ended_seq BIGINT);
CREATE INDEX jobs_unfinished ON jobs ("order") WHERE ended_s IS NULL;
CREATE TABLE outputs (job_id VARCHAR(64) NOT NULL, node_id VARCHAR(255) NOT NULL, ui TEXT NOT NULL, seq BIGINT NOT NULL,
                      PRIMARY KEY (job_id, node_id));
CREATE TABLE counters ("key" VARCHAR(767) NOT NULL PRIMARY KEY, following BIGINT NOT NULL);
CREATE TABLE reservations (job_id VARCHAR(64) NOT NULL, node_id VARCHAR(255) NOT NULL, "key" VARCHAR(767) NOT NULL,
                           first BIGINT NOT NULL, amount BIGINT NOT NULL, PRIMARY KEY (job_id, node_id, "key"));
CREATE TABLE pool_specs (pool VARCHAR(64) NOT NULL PRIMARY KEY, specs TEXT NOT NULL);
INSERT INTO lease VALUES ('scheduler', 7, 'me', 12.5);
INSERT INTO jobs VALUES ('a', 3, 3, 'running', 'client', '{"1": {"class_type": "X"}}', '["1"]', '{}', 5, 6, NULL, '{}',
                         1, 2, NULL);
INSERT INTO outputs VALUES ('a', '1', '{"images": ["x"]}', 3);
INSERT INTO counters VALUES ('output/x', 42);
"""
"""A database of version 1, as the first release made it, with a job."""

LAST_UNWRITTEN = 3
"""Databases up to this version may lack the table that says which version they are of."""

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
    outputs={"1": (3, {"images": ["x"]})},
)


def engine(url: str) -> sa.Engine:
    return sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))


def of_version(url: str, version: int) -> None:
    """Make a database of an older version, without the table that says so if it may be that old."""
    opened = engine(url)
    with opened.begin() as connection:
        later = [s for n in range(2, version + 1) for s in steps(n, opened.dialect.name)]
        for statement in [*filter(str.strip, FIRST.split(";")), *later]:
            connection.exec_driver_sql(statement)
        if version > LAST_UNWRITTEN:
            SCHEMA.create(connection)
            connection.execute(sa.insert(SCHEMA).values(version=version))
    opened.dispose()


def shape(url: str) -> str:
    """What a database is made of, as text."""
    opened = engine(url)
    inspector = sa.inspect(opened)
    tables = {
        name: {
            "columns": [(c["name"], str(c["type"]), c["nullable"]) for c in inspector.get_columns(name)],
            "key": inspector.get_pk_constraint(name)["constrained_columns"],
            "unique": sorted(u["column_names"] for u in inspector.get_unique_constraints(name)),
            "indexes": sorted((i["name"] or "", i["column_names"]) for i in inspector.get_indexes(name)),
        }
        for name in sorted(inspector.get_table_names())
    }
    opened.dispose()
    return json.dumps(tables, indent=1)


@pytest.mark.parametrize("version", range(1, VERSION + 1))
def test_an_older_database_keeps_its_jobs_counters_and_lease(database_url, version):
    of_version(database_url, version)
    jobs = Jobs(database_url)
    assert jobs.unfinished() == [JOB]
    assert jobs.started_s() == 12.5
    assert jobs.acquire("me") == 8
    assert reserve(jobs, 8, "b", "1", "output/x", 0, contents(1))[0] == 42
    jobs.close()


def test_a_database_brought_up_from_the_first_version_is_made_as_a_new_one_is(database_url, request, tmp_path):
    of_version(database_url, 1)
    Jobs(database_url).close()
    if database_url.startswith("sqlite"):
        fresh = f"sqlite:///{tmp_path}/fresh.sqlite"
    else:
        fresh = request.getfixturevalue("postgres_server").database()
    Jobs(fresh).close()
    assert shape(database_url) == shape(fresh)


def test_what_tenants_jobs_have_from_before_their_ids_were_their_own_stays_theirs(database_url):
    of_version(database_url, 25)
    opened = engine(database_url)
    rows = {
        "jobs": "SELECT 'b', 4, 4, state, client_id, prompt, targets, extra_data, created_s, started_s, ended_s, "
        "failure, queued_seq, started_seq, ended_seq, cached, losses, lone_losses, labels, 'studio' FROM jobs",
        "assets": "SELECT 'asset', NULL, 'output', 'x', 1, '', NULL, '[]', 1, NULL, NULL, 'b', '1', 'studio', '', NULL",
        "deliveries": "SELECT 'd', 'hook', 'b', 4, '', '', 'pending', 0, 1, 1, NULL, NULL, ''",
        "outputs": "SELECT 'b', '1', '{}', 4",
        "asset_uses": "SELECT 'b', 'asset'",
        "idempotency_keys": "SELECT 'b', 'key', 1, 'studio' UNION ALL SELECT 'asset', 'other', 1, 'studio'",
        "reservations": "SELECT 'b', '1', 'output/x', 7, 1, '', '[]'",
    }
    with opened.begin() as connection:
        for table, values in rows.items():
            connection.exec_driver_sql(f"INSERT INTO {table} {values}")
    jobs = Jobs(database_url)
    assert [(job.job_id, sorted(job.outputs)) for job in jobs.unfinished()] == [("a", ["1"]), ("b@studio", ["1"])]
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
    of_version(database_url, 1)
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
        connection.execute(sa.update(SCHEMA).values(version=VERSION + 1))
    with pytest.raises(ConfigError, match=f"of version {VERSION + 1}"):
        Jobs(database_url)
    with opened.begin() as connection:
        assert connection.execute(sa.select(SCHEMA.c.version)).scalar_one() == VERSION + 1
    opened.dispose()


def contents(count: int) -> Contents:
    """Files to be saved."""
    return Contents(".png", tuple(map(str, range(count))))
