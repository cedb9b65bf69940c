"""What SQLite logs comes into the file beside the thread that writes, which waits for none of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from serve_app.store.database import sqlite_connection
from serve_app.store.database.changes import JobAccepted, JobRow
from serve_app.store.database.jobs import Jobs
from serve_app.store.database.sqlite_log import CHANGES, SqliteLog

ROW = JobRow("a", 0.0, 0, {"1": {"class_type": "X"}}, ("1",), "client", {}, created_s=5.0, queued_seq=1)
PAGE_BYTES = 4096 + 24
"""A page in the log, with its header."""
PAGES, MOST_PAGES = 5, 30
"""What a job's commit writes, of the table and each of its indexes; and at most, where some of them grow by it."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


@pytest.fixture
def writing(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path)) as connection:
        sqlite_connection.prepare(connection, None)
        connection.execute("CREATE TABLE a (b)")
        yield connection


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def moved(path: Path, changes: int) -> None:
    log = SqliteLog(path)
    for _ in range(changes):
        log.wrote(1)
    log.close()


def in_the_file(path: Path) -> int:
    """How many rows there are without the log."""
    alone = path.with_name("alone.sqlite")
    alone.write_bytes(path.read_bytes())
    with closing(sqlite3.connect(alone)) as connection:
        return int(connection.execute("SELECT count(*) FROM a").fetchone()[0])


def written_bytes() -> int:
    """How much this thread has written until now."""
    counts = dict(line.split(": ") for line in Path("/proc/thread-self/io").read_text().splitlines())
    return int(counts["wchar"])


def test_after_a_number_of_changes_the_log_is_in_the_file_and_begins_anew(path, writing):
    moved(path, CHANGES)
    for n in range(100):
        writing.execute("INSERT INTO a VALUES (?)", (n,))
        writing.commit()
    moved(path, CHANGES - 1)
    assert in_the_file(path) == 0
    logged_bytes = log_of(path).stat().st_size
    moved(path, CHANGES)
    assert in_the_file(path) == 100
    writing.execute("INSERT INTO a VALUES (100)")
    writing.commit()
    assert log_of(path).stat().st_size == logged_bytes


def test_no_file_is_made_where_there_is_none(path):
    moved(path, CHANGES)
    assert not path.exists()


def test_a_commit_writes_a_page_of_each_index_and_none_for_others(path):
    jobs = Jobs(f"sqlite:///{path}")
    epoch, pages = jobs.acquire("me"), []
    for n in range(600):
        before = written_bytes()
        jobs.write(epoch, [JobAccepted(replace(ROW, job_id=f"{n * 7919 % 600}", order=n, queued_seq=n))])
        pages.append((written_bytes() - before) // PAGE_BYTES)
    jobs.close()
    assert (median(pages), max(pages) < MOST_PAGES) == (PAGES, True)
