"""A database's file that somebody deletes, moves or replaces while it is open: nothing that was written is lost."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.errors import ConfigError, DatabaseAwayError, DatabaseDamagedError, DatabaseGoneError
from serve_app.store.database.changes import JobAccepted, JobRow
from serve_app.store.database.jobs import Jobs

ROW = JobRow("a", 0.0, 0, {}, ("1",), "client", {}, created_s=5.0, queued_seq=1)
OTHER = replace(ROW, job_id="b", order=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "jobs.sqlite"


@pytest.fixture
def jobs(path: Path) -> Iterator[Jobs]:
    path.parent.mkdir()
    database = Jobs(f"sqlite:///{path}")
    yield database
    database.close()


def kept(path: Path) -> list[str]:
    """What a server that starts on the file finds."""
    database = Jobs(f"sqlite:///{path}")
    found = [row.job_id for row in database.unfinished()]
    database.close()
    return found


@pytest.mark.parametrize("companions", [(), ("-wal",), ("-wal", "-shm")])
def test_a_deleted_file_is_written_again_with_all_it_held(jobs, path, companions):
    epoch = jobs.acquire("me")
    jobs.write(epoch, [JobAccepted(ROW)])
    for name in ("", *companions):
        path.with_name(path.name + name).unlink()
    with pytest.raises(DatabaseGoneError, match="has been deleted"):
        jobs.check_there()
    jobs.write(epoch, [JobAccepted(OTHER)])
    jobs.check_there()
    assert [row.job_id for row in jobs.unfinished()] == ["a", "b"]
    assert [name for name in os.listdir(path.parent) if "rescued" in name] == []
    jobs.close()
    assert kept(path) == ["a", "b"]


def test_a_file_that_is_deleted_again_and_again_loses_nothing(jobs, path):
    epoch = jobs.acquire("me")
    for n in range(5):
        jobs.write(epoch, [JobAccepted(replace(ROW, job_id=str(n), order=n))])
        path.unlink()
    jobs.renew(epoch)
    jobs.close()
    assert kept(path) == list("01234")


def test_a_reader_of_the_deleted_file_leaves_the_one_that_takes_its_place_alone(jobs, path):
    epoch = jobs.acquire("me")
    jobs.write(epoch, [JobAccepted(ROW)])
    reading, done = threading.Event(), threading.Event()

    def read() -> None:
        with jobs.reading() as connection:
            connection.exec_driver_sql("SELECT * FROM jobs").fetchone()
            reading.set()
            done.wait(60)

    reader = threading.Thread(target=read)
    reader.start()
    reading.wait(60)
    path.unlink()
    jobs.write(epoch, [JobAccepted(OTHER)])
    done.set()
    reader.join()
    jobs.write(epoch, [JobAccepted(replace(ROW, job_id="c", order=2))])
    assert kept(path) == ["a", "b", "c"]


def test_another_file_in_its_place_is_not_written_and_accepted_jobs_are_saved_next_to_it(jobs, path, tmp_path):
    epoch = jobs.acquire("me")
    jobs.write(epoch, [JobAccepted(ROW)])
    Jobs(f"sqlite:///{tmp_path}/other.sqlite").close()
    for name in os.listdir(path.parent):
        (path.parent / name).unlink()
    os.replace(tmp_path / "other.sqlite", path)
    for _ in range(3):
        with pytest.raises(DatabaseGoneError, match="has been replaced") as gone:
            jobs.write(epoch, [JobAccepted(OTHER)])
    (copy,) = path.parent.glob("*.rescued-*")
    assert str(copy) in str(gone.value)
    assert [row.job_id for row in jobs.unfinished()] == ["a"]
    jobs.close()
    assert kept(path) == []
    assert kept(copy) == ["a"]


def test_a_file_that_is_moved_away_and_back_is_used_again(jobs, path, tmp_path):
    epoch = jobs.acquire("me")
    jobs.write(epoch, [JobAccepted(ROW)])
    os.rename(path, tmp_path / "moved")
    path.write_bytes(b"")
    with pytest.raises(DatabaseGoneError):
        jobs.write(epoch, [JobAccepted(OTHER)])
    os.rename(tmp_path / "moved", path)
    jobs.write(epoch, [JobAccepted(OTHER)])
    jobs.close()
    assert kept(path) == ["a", "b"]


def test_a_folder_that_is_gone_is_named_until_it_is_there_again(jobs, path, tmp_path):
    epoch = jobs.acquire("me")
    jobs.write(epoch, [JobAccepted(ROW)])
    os.rename(path.parent, tmp_path / "moved")
    with pytest.raises(DatabaseGoneError, match="cannot be written there again"):
        jobs.write(epoch, [JobAccepted(OTHER)])
    path.parent.mkdir()
    jobs.write(epoch, [JobAccepted(OTHER)])
    jobs.close()
    assert kept(path) == ["a", "b"]


def test_a_file_that_is_deleted_between_writing_and_the_commits_answer_is_noticed(jobs, path):
    epoch = jobs.acquire("me")
    commit = jobs.engine.dialect.do_commit

    def deleting(connection: object) -> None:
        commit(connection)
        path.unlink()

    jobs.engine.dialect.do_commit = deleting
    with pytest.raises(DatabaseGoneError):
        jobs.write(epoch, [JobAccepted(ROW)])
    jobs.engine.dialect.do_commit = commit
    jobs.write(epoch, [JobAccepted(ROW)])
    jobs.close()
    assert kept(path) == ["a"]


def test_a_copy_left_by_a_crash_without_its_original_is_an_error_not_ignored(path):
    path.parent.mkdir()
    Jobs(f"sqlite:///{path}").close()
    os.rename(path, f"{path}.rescued-1")
    with pytest.raises(DatabaseDamagedError, match="rescued-1"):
        Jobs(f"sqlite:///{path}")
    assert not path.exists()


@pytest.mark.parametrize("content", [b"no database" * 1000, b"\0" * 8192])
def test_a_file_that_is_no_database_is_said_to_be_damaged_and_left_alone(tmp_path, content):
    path = tmp_path / "jobs.sqlite"
    path.write_bytes(content)
    with pytest.raises(DatabaseDamagedError, match="move it away"):
        Jobs(f"sqlite:///{path}")
    assert path.read_bytes() == content


def test_a_damaged_page_is_distinguished_from_a_database_that_is_away(tmp_path):
    path = tmp_path / "jobs.sqlite"
    Jobs(f"sqlite:///{path}").close()
    path.write_bytes(path.read_bytes()[:4096] + b"\xff" * (path.stat().st_size - 4096))
    with pytest.raises(DatabaseDamagedError):
        Jobs(f"sqlite:///{path}")


def test_a_database_that_does_not_answer_is_distinguished_from_a_url_that_names_none(tmp_path):
    with pytest.raises(ConfigError):
        Jobs("nosuch://host/x")
    with pytest.raises(DatabaseAwayError):
        Jobs(f"postgresql://me@/jobs?host={tmp_path}")
