"""The job database: what is written is there, once, and only the newest epoch may write."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from serve_app.errors import ChangeRefusedError, ConfigError, DatabaseAwayError, StaleEpochError
from serve_app.events import Ending, Failure
from serve_app.store.database.changes import (
    JobAccepted,
    JobEnded,
    JobQuery,
    JobRow,
    JobStarted,
    ListCount,
    OutputRecorded,
    OwnerCharged,
    Sort,
    TenantUsed,
)
from serve_app.store.database.jobs import Jobs
from serve_app.store.database.queries import ListJobs
from serve_app.store.files.reserved import Contents
from tests.unit.store.reserving import reserve

ROW = JobRow("a", 0.0, 0, {"1": {"class_type": "X"}}, ("1",), "client", {"k": [1]}, created_s=5.0, queued_seq=1)


@pytest.fixture
def jobs(database_url):
    database = Jobs(database_url)
    yield database
    database.close()


def test_a_job_comes_back_as_it_was_accepted(jobs):
    jobs.write(jobs.acquire("me"), [JobAccepted(ROW)])
    assert jobs.job("a") == ROW
    assert jobs.job("b") is None


def test_a_jobs_life_is_readable_from_its_row(jobs):
    epoch = jobs.acquire("me")
    jobs.write(epoch, [JobAccepted(ROW), JobStarted("a", 6.0, 2)])
    jobs.write(epoch, [OutputRecorded("a", "1", {"images": ["x"]}, 3), JobEnded("a", "success", 7.0, 4, Failure())])
    row = jobs.job("a")
    assert (row.state, row.started_s, row.started_seq, row.ended_s, row.ended_seq) == ("success", 6.0, 2, 7.0, 4)
    assert (row.outputs, row.output_seqs) == ({"1": {"images": ["x"]}}, (3,))
    assert row.ended


def test_unfinished_jobs_come_back_in_submission_order_without_ended_ones(jobs):
    epoch = jobs.acquire("me")
    rows = [replace(ROW, job_id=str(n), order=n, number=-n) for n in (2, 0, 1)]
    jobs.write(epoch, [*map(JobAccepted, rows), JobEnded("1", "error", 9.0, 5, Failure(message="bad"))])
    assert [row.job_id for row in jobs.unfinished()] == ["0", "2"]
    assert jobs.next_order() == 3


def test_an_older_epoch_can_change_nothing(jobs):
    old = jobs.acquire("old")
    new = jobs.acquire("new")
    assert new > old
    for attempt in (
        lambda: jobs.write(old, [JobAccepted(ROW)]),
        lambda: reserve(jobs, old, "a", "1", "key", 1, contents(1)),
        lambda: jobs.save_specs(old, "gpu", [], []),
    ):
        with pytest.raises(StaleEpochError):
            attempt()
    assert jobs.job("a") is None


def test_changes_are_applied_all_or_none(jobs):
    epoch = jobs.acquire("me")
    with pytest.raises(ChangeRefusedError):
        jobs.write(epoch, [JobAccepted(ROW), JobAccepted(replace(ROW, number=7.0))])
    assert jobs.job("a") is None


def test_counters_are_given_once_and_the_same_again_to_who_had_them(jobs):
    epoch = jobs.acquire("me")
    assert reserve(jobs, epoch, "a", "1", "output/x", 4, contents(2))[0] == 4
    assert reserve(jobs, epoch, "b", "1", "output/x", 1, contents(1))[0] == 6
    assert reserve(jobs, epoch, "a", "1", "output/x", 0, contents(2))[0] == 4
    assert reserve(jobs, epoch, "a", "2", "output/x", 9, contents(1))[0] == 9
    assert reserve(jobs, epoch, "c", "1", "output/y", 1, contents(1))[0] == 1


def test_counters_that_turn_out_to_be_taken_are_exchanged_for_higher_ones(jobs):
    epoch = jobs.acquire("me")
    assert reserve(jobs, epoch, "a", "1", "output/x", 1, contents(2))[0] == 1
    assert reserve(jobs, epoch, "a", "1", "output/x", 7, contents(2))[0] == 7
    assert reserve(jobs, epoch, "a", "1", "output/x", 0, contents(2))[0] == 7
    assert reserve(jobs, epoch, "b", "1", "output/x", 0, contents(1))[0] == 9


def test_nothing_follows_counters_that_were_never_given(jobs):
    epoch = jobs.acquire("me")
    assert reserve(jobs, epoch, "a", "1", "output/x", 0, contents(1))[0] == 0
    assert reserve(jobs, epoch, "b", "1", "output/x", 3, contents(1))[0] == 3
    assert reserve(jobs, epoch, "a", "1", "output/x", 0, contents(1))[0] == 4


@pytest.mark.parametrize("node_id", ["\ud800", "\udfff half a pair"])
def test_a_change_that_no_database_can_hold_is_refused_with_the_job_it_is_of(jobs, node_id):
    epoch = jobs.acquire("me")
    jobs.write(epoch, [JobAccepted(ROW), JobAccepted(replace(ROW, job_id="b", order=1))])
    with pytest.raises(ChangeRefusedError, match="refuses") as refused:
        jobs.write(epoch, [JobStarted("a", 6.0, 2), OutputRecorded("b", node_id, {}, 3), JobStarted("b", 6.0, 4)])
    assert refused.value.job_id == "b"
    assert {row.state for row in jobs.unfinished()} == {"queued"}
    with pytest.raises(ChangeRefusedError):
        reserve(jobs, epoch, "a", node_id, "output/x", 1, contents(1))


NESTED: list = []
for _ in range(100_000):
    NESTED = [NESTED]
CIRCLE: list = []
CIRCLE.append(CIRCLE)


@pytest.mark.parametrize(("node_id", "shown"), [(object(), {}), ("1", {1}), ("1", NESTED), ("1", CIRCLE)])
def test_what_a_node_hands_over_that_is_no_data_is_refused_not_retried(jobs, node_id, shown):
    epoch = jobs.acquire("me")
    jobs.write(epoch, [JobAccepted(ROW)])
    with pytest.raises(ChangeRefusedError) as refused:
        jobs.write(epoch, [OutputRecorded("a", node_id, {"images": shown}, 3)])
    assert refused.value.job_id == "a"


@pytest.mark.parametrize("node_id", ["1\0", "n" * 256])
def test_postgresql_refuses_what_its_columns_cannot_hold(postgres_server, node_id):
    jobs = Jobs(postgres_server.database())
    epoch = jobs.acquire("me")
    jobs.write(epoch, [JobAccepted(ROW)])
    with pytest.raises(ChangeRefusedError) as refused:
        jobs.write(epoch, [OutputRecorded("a", node_id, {}, 3)])
    assert refused.value.job_id == "a"
    assert "INSERT" not in str(refused.value)
    jobs.close()


def test_a_database_that_is_away_says_so_and_is_used_again_when_it_is_back(postgres_server):
    jobs = Jobs(postgres_server.database())
    epoch = jobs.acquire("me")
    postgres_server.stop()
    try:
        for attempt in (lambda: jobs.write(epoch, [JobAccepted(ROW)]), lambda: jobs.job("a")):
            with pytest.raises(DatabaseAwayError, match="postgresql"):
                attempt()
    finally:
        postgres_server.start()
    jobs.write(epoch, [JobAccepted(ROW)])
    assert jobs.job("a") == ROW
    jobs.close()


def test_a_database_that_is_locked_is_away_not_refusing(tmp_path, monkeypatch):
    jobs = Jobs(f"sqlite:///{tmp_path}/jobs.sqlite")
    epoch = jobs.acquire("me")
    with jobs.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=1")
    other = sqlite3.connect(tmp_path / "jobs.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseAwayError, match="locked"):
        jobs.write(epoch, [JobAccepted(ROW)])
    other.execute("ROLLBACK")
    other.close()
    jobs.write(epoch, [JobAccepted(ROW)])
    jobs.close()


def test_every_write_to_a_file_goes_to_the_same_connection_however_many_there_are(tmp_path):
    jobs = Jobs(f"sqlite:///{tmp_path}/jobs.sqlite")
    epoch = jobs.acquire("me")
    with jobs.engine.connect(), jobs.engine.connect():  # two that go back into the pool
        pass
    wrote = set()
    sa.event.listen(jobs.engine, "commit", lambda connection: wrote.add(connection.connection.dbapi_connection))
    for n in range(5):
        jobs.write(epoch, [JobAccepted(replace(ROW, job_id=str(n), order=n))])
    assert len(wrote) == 1
    jobs.close()


def test_a_postgresql_whose_host_is_cut_off_is_given_up_unless_the_url_says_otherwise(postgres_server):
    url = postgres_server.database()
    for more, expected in (("", "20000"), ("tcp_user_timeout=7", "7")):
        jobs = Jobs(f"{url}{'&' if '?' in url else '?'}{more}")
        with contextlib.closing(jobs.engine.raw_connection()) as connection:
            said = connection.driver_connection.info.get_parameters()
        jobs.close()
        assert said["tcp_user_timeout"] == expected
        assert int(said["keepalives_idle"]) + int(said["keepalives_interval"]) * int(said["keepalives_count"]) <= 20


@pytest.mark.parametrize(
    "url", ["no url", "nosuch://host/x", "postgresql+nosuchdriver://host/x", "sqlite://", "sqlite:///:memory:"]
)
def test_a_url_that_cannot_be_used_is_refused(url):
    with pytest.raises(ConfigError, match="database_url"):
        Jobs(url)


def test_a_password_in_the_url_is_in_no_error(tmp_path):
    with pytest.raises(DatabaseAwayError) as away:
        Jobs(f"postgresql://me:secret@/jobs?host={tmp_path}")
    assert "secret" not in str(away.value)


def test_all_survives_closing_and_opening_again(jobs, database_url):
    jobs.write(jobs.acquire("me"), [JobAccepted(ROW)])
    jobs.save_specs(1, "gpu", [{"class_type": "X"}], [{"method": "GET", "pattern": "/x"}])
    jobs.close()
    again = Jobs(database_url)
    assert again.acquire("me") == 2
    assert again.job("a") == ROW
    assert again.specs() == {"gpu": [{"class_type": "X"}]}
    assert again.routes() == {"gpu": [{"method": "GET", "pattern": "/x"}]}
    again.close()


def test_a_server_has_started_anew_unless_its_scheduler_merely_came_back(jobs):
    jobs.acquire("server")
    started_s = jobs.started_s()
    jobs.acquire("server")
    assert jobs.started_s() == started_s
    jobs.acquire("another server")
    assert jobs.started_s() > started_s


def test_lists_leave_out_what_was_cancelled_before_it_started_and_find_saved_workflows(jobs):
    epoch = jobs.acquire("me")
    saved = {"extra_pnginfo": {"workflow": {"id": "5b2b3f5e-1111"}}}
    rows = [replace(ROW, job_id="a"), replace(ROW, job_id="b", order=1, extra_data=saved)]
    jobs.write(epoch, [*map(JobAccepted, rows), JobEnded("a", "cancelled", 9.0, 5, Failure())])
    assert [row.job_id for row in jobs.page(JobQuery(("queued", "cancelled"), "created"))[0]] == ["b"]
    assert jobs.page(JobQuery(("queued",), "created", workflow_id="5b2b3f5e-1111"))[1] == 1
    for other in ("other", "%", "5b2b3f5e_1111", "/"):
        assert jobs.page(JobQuery(("queued",), "created", workflow_id=other))[1] == 0


def test_ended_jobs_are_forgotten_with_all_that_was_recorded_of_them(jobs):
    epoch = jobs.acquire("me")
    rows = [replace(ROW, job_id=str(n), order=n) for n in range(3)]
    ended = [JobEnded("0", "success", 9.0, 5, Failure()), JobEnded("1", "success", 9.0, 6, Failure())]
    jobs.write(epoch, [*map(JobAccepted, rows), OutputRecorded("0", "1", {}, 4), *ended])
    jobs.forget(epoch, ["0", "2"])
    assert [jobs.job(str(n)) is None for n in range(3)] == [True, False, False]
    jobs.forget(epoch, None)
    assert [jobs.job(str(n)) is None for n in range(3)] == [True, True, False]


def test_a_window_is_cut_from_the_whole_list_wherever_it_is_counted_from(jobs):
    epoch = jobs.acquire("me")
    rows = [replace(ROW, job_id=str(n), order=n) for n in range(12)]
    jobs.write(epoch, [*map(JobAccepted, rows), *(JobStarted(str(n), 1.0, 2) for n in range(0, 12, 2))])
    jobs.write(epoch, [JobEnded(str(n), "success", 9.0 + n % 4, 50 - n, Failure()) for n in range(1, 10)])
    by_order, by_end = [str(n) for n in range(12)], [str(n) for n in range(9, 0, -1)]
    lists: tuple[tuple[Sort, tuple[str, ...], list[str]], ...] = (
        ("created", ("queued", "running", "success"), by_order),
        ("ended", ("success",), by_end),
        ("duration", ("success",), ["1", "3", "5", "7", "9", "4", "8", "2", "6"]),
    )
    for (sort, states, ascending), descending in itertools.product(lists, (False, True)):
        whole = ascending[::-1] if descending else ascending
        query = JobQuery(states, sort, descending)
        for offset, limit in itertools.product((0, 1, 5, 7, 11, 12, 20), (0, 1, 4, 12, None)):
            window, total = jobs.page(replace(query, offset=offset, limit=limit))
            assert ([row.job_id for row in window], total) == (whole[offset:][:limit], len(whole))
    assert keys(jobs, JobQuery(("success",), "created", start=4, offset=1, limit=2)) == ["5", "6"]
    assert keys(jobs, JobQuery(("success",), "created", True, start=4, offset=1, limit=2)) == ["3", "2"]
    assert keys(jobs, JobQuery(("success",), "ended", start=43, offset=1)) == ["6", "5", "4", "3", "2", "1"]
    assert keys(jobs, JobQuery(("success",), "ended", True, start=43)) == ["7", "8", "9"]
    assert jobs.keys(JobQuery(("queued", "success"), "created", start=9)) == [("9", 41), ("11", None)]


def keys(jobs: Jobs, query: JobQuery) -> list[str]:
    return [job_id for job_id, _ in jobs.keys(query)]


def test_ended_jobs_are_counted_by_what_lists_count_them_by(jobs):
    epoch = jobs.acquire("me")
    rows = [replace(ROW, job_id=str(n), order=1000 * n, tenant="studio" if n == 3 else "") for n in range(6)]
    endings: list[Ending] = ["success", "error", "success", "success", "cancelled", "cancelled"]
    jobs.write(epoch, [*map(JobAccepted, rows), JobStarted("5", 1.0, 2)])
    jobs.write(epoch, [JobEnded(str(n), ending, 9.0, 8000 + 100 * n, Failure()) for n, ending in enumerate(endings)])
    assert set(jobs.ended_counts(8400)) == {
        ListCount("", "success", 0, 0, 1),
        ListCount("", "error", 0, 0, 1),
        ListCount("", "success", 1, 1, 1),
        ListCount("studio", "success", 2, 1, 1),
    }
    assert ListCount("", "cancelled", 4, 1, 1) in jobs.ended_counts(8500)


def contents(count: int) -> Contents:
    """Files to be saved."""
    return Contents(".png", tuple(map(str, range(count))))


@pytest.mark.parametrize("tenant", ["", "studio"])
@pytest.mark.parametrize("sort", ["created", "ended"])
@pytest.mark.parametrize("descending", [False, True])
def test_lists_are_read_in_their_order_without_the_rows_long_texts(tmp_path, sort, descending, tenant):
    query = JobQuery(("success", "error"), sort, descending, offset=5, limit=20, tenant=tenant, start=7)
    for plan in plans(tmp_path, lambda jobs: jobs.keys(query)):
        assert f"SEARCH jobs USING COVERING INDEX jobs_{'of_tenant_' if tenant else ''}by_" in plan
        assert "TEMP B-TREE" not in plan


def test_ended_jobs_are_counted_without_the_rows_long_texts(tmp_path):
    [plan] = plans(tmp_path, lambda jobs: jobs.ended_counts(7))
    assert "COVERING INDEX jobs_by_end" in plan


def test_the_newest_page_of_a_list_takes_sqlite_as_many_steps_however_many_jobs_there_are(tmp_path):
    def steps(rows: int) -> int:
        jobs = Jobs(f"sqlite:///{tmp_path}/{rows}.sqlite")
        jobs.write(jobs.acquire("me"), [JobAccepted(replace(ROW, job_id=str(n), order=n)) for n in range(rows)])
        count = 0

        def step() -> int:
            nonlocal count
            count += 1
            return 0

        with jobs.reading() as connection:
            connection.connection.dbapi_connection.set_progress_handler(step, 1)
            assert len(ListJobs(65).execute(connection)) == 65
            connection.connection.dbapi_connection.set_progress_handler(None, 1)
        jobs.close()
        return count

    assert steps(100) == steps(5000) > 65


@pytest.mark.parametrize("ask", [Jobs.unfinished, Jobs.outputs_of_unfinished])
def test_what_has_not_ended_is_found_by_the_index_of_ends_in_order_and_no_ended_job_is_looked_at(tmp_path, ask):
    [plan] = plans(tmp_path, ask)
    assert "INDEX jobs_by_end (ended_seq=?)" in plan
    assert "TEMP B-TREE" not in plan
    assert "SCAN" not in plan


def plans(folder: Path, ask: Callable[[Jobs], object]) -> list[str]:
    """Return how SQLite carries out what it is asked for."""
    file = folder / "jobs.sqlite"
    jobs = Jobs(f"sqlite:///{file}")
    asked: list[tuple[str, tuple]] = []
    sa.event.listen(jobs.engine, "before_cursor_execute", lambda *given: asked.append((given[2], given[3])))
    ask(jobs)
    jobs.close()
    with contextlib.closing(sqlite3.connect(file)) as connection:
        return [str(connection.execute(f"EXPLAIN QUERY PLAN {sql}", values).fetchall()) for sql, values in asked]


def test_nothing_is_left_in_the_file_of_what_was_forgotten(tmp_path, monkeypatch):
    connect = sqlite3.dbapi2.connect

    def careless(*given, **named):
        """Connect as a SQLite does that was not built to overwrite what is deleted."""
        connection = connect(*given, **named)
        connection.execute("PRAGMA secure_delete=OFF")
        return connection

    monkeypatch.setattr(sqlite3.dbapi2, "connect", careless)
    secret = "what-somebody-asked-for"
    jobs = Jobs(f"sqlite:///{tmp_path}/jobs.sqlite")
    epoch = jobs.acquire("me")
    rows = [replace(ROW, job_id=str(n), order=n, prompt={"1": f"{n} {secret}" * 100}) for n in range(20)]
    jobs.write(epoch, [*map(JobAccepted, rows), *(JobEnded(row.job_id, "success", 9.0, 5, Failure()) for row in rows)])
    jobs.forget(epoch, [row.job_id for row in rows])
    jobs.close()
    assert {path.name for path in tmp_path.iterdir()} == {"jobs.sqlite"}
    assert secret.encode() not in (tmp_path / "jobs.sqlite").read_bytes()


def test_of_each_owner_of_jobs_the_last_count_of_ended_replicas_is_kept(jobs):
    epoch = jobs.acquire("test")
    charged = [OwnerCharged("studio", None, 2, 7.0, 17.0), OwnerCharged("", "c" * 9000, 1, 5.0, 10.0)]
    for _ in range(2):  # the answer to a COMMIT may be lost
        jobs.write(epoch, [replace(charged[0], count=1), *charged])
    assert sorted(jobs.backoffs(), key=lambda one: one.tenant) == [charged[1], charged[0]]


def test_what_tenants_have_used_is_a_total_of_each_day(jobs):
    epoch = jobs.acquire("test")
    for _ in range(2):  # the answer to a COMMIT may be lost
        jobs.write(epoch, [TenantUsed("a", "studio", 7, 1.0), TenantUsed("b", "studio", 7, 2.5)])
        jobs.write(epoch, [TenantUsed("c", "other", 7, 4.0), TenantUsed("c", "studio", 8, 0.5)])
    assert jobs.usage(8) == [TenantUsed("", "studio", 8, 0.5)]
    assert [(used.tenant, used.gpu_s) for used in jobs.usage(7)] == [("other", 4.0), ("studio", 2.5), ("studio", 0.5)]
