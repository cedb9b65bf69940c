"""A copy of a database is whole, of one moment, and what is restored from it goes on, in either kind of database."""

from __future__ import annotations

import gzip
import json
import math
import os
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from serve_app.cli import backup as command
from serve_app.cli import main
from serve_app.errors import BackupError, StaleEpochError
from serve_app.events import Failure
from serve_app.store.database.changes import Claims, JobAccepted, JobEnded, JobStarted, OutputRecorded
from serve_app.store.database.jobs import Jobs
from serve_app.store.files.store import AREAS, FileRef, WholeStore
from serve_app.store.files.volume import Volume
from serve_app.store.tenants.api_keys import AddKey, EndKey, FindKey, FindKeys, ListKeys, minted, new_session
from serve_app.store.tenants.audit import AuditEntry, ReadAudit, ReadLastBackup, WriteAudit
from serve_app.store.tenants.pauses import THE_QUEUE, AllPauses, SetPause
from serve_app.store.transfer.backup import restore_backup, write_backup
from tests.unit.store.retention.test_sweep import ROW

KEY = replace(minted("acme", "website", ("submit", "read"), 90.0)[0], created_s=5.0)
SEEN = AuditEntry(6.5, "ingress", 1, "acme", KEY.shown, "POST /prompt", "10.0.0.1", 200)
FILE = FileRef("output", "sub", "ä.png")


@pytest.fixture
def volume(tmp_path: Path) -> WholeStore:
    return Volume({area: tmp_path / area for area in AREAS})


@pytest.fixture(params=["sqlite", "postgresql"])
def other_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where it is restored: another database, of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/other.sqlite"
    return str(request.getfixturevalue("postgres_server").database())


def filled(url: str) -> Jobs:
    """A database with an ended and a running job, a label, a counter, a pause, an API key and what it was used for."""
    jobs = Jobs(url)
    epoch = jobs.acquire("server")
    rows = [
        replace(ROW, job_id=name, order=n, queued_seq=n, prompt={"1": "ü\u2028"}, labels={"k": name}, tenant="acme")
        for n, name in enumerate(("done", "runs"))
    ]
    jobs.write(
        epoch,
        [
            *(JobAccepted(row, Claims(key=row.job_id)) for row in rows),
            *(JobStarted(row.job_id, 6.25, 10 + row.order) for row in rows),
            *(OutputRecorded(row.job_id, "1", {"images": ["x"]}, 20 + row.order) for row in rows),
            JobEnded("done", "success", 9.5, 30, Failure()),
        ],
    )
    jobs.query(epoch, SetPause(THE_QUEUE, True))
    jobs.query(epoch, AddKey(KEY))
    jobs.query(epoch, WriteAudit((SEEN,), 0.0))
    return jobs


def state(jobs: Jobs) -> object:
    kept = (jobs.query(0, each) for each in (AllPauses(), ListKeys(), ReadAudit(9)))
    return (jobs.rows(["done", "runs"]), jobs.unfinished(), jobs.next_order(), *kept)


def test_what_is_restored_is_what_was_there_and_goes_on(database_url, other_url, store, tmp_path):
    store.write(FILE, b"12345")
    jobs, copy = filled(database_url), tmp_path / "copy.gz"
    before = state(jobs)
    summary = write_backup(jobs, copy, store)
    assert (summary.rows["jobs"], summary.rows["outputs"], summary.files["output"]) == (2, 2, 1)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    jobs.close()
    other = Jobs(other_url)
    restored = restore_backup(other, copy, store, replace=False, keep_keys=True)
    assert (restored.rows, restored.absent) == (summary.rows, ())
    assert state(other) == before
    assert (other.query(0, ListKeys()), other.query(0, ReadAudit(9))) == ((KEY,), (SEEN,))
    epoch = other.acquire("server")
    assert epoch == 3, "the cursors of events go on growing"
    other.write(epoch, [JobEnded("runs", "success", 9.9, 31, Failure())])
    assert other.unfinished() == []
    other.close()


def test_a_copy_is_of_one_moment_while_jobs_come(database_url, other_url, tmp_path, volume, monkeypatch):
    jobs, copy = filled(database_url), tmp_path / "copy.gz"
    writer = Jobs(database_url)
    number = iter(range(50, 1000))

    def written(value: object, **form: object) -> str:
        """Accept a job with an output between any two lines of the copy."""
        n = next(number)
        row = replace(ROW, job_id=str(n), order=n, queued_seq=n)
        writer.write(1, [JobAccepted(row), OutputRecorded(row.job_id, "1", {}, n)])
        return encode(value, **form)

    encode: Callable[..., str] = json.dumps
    with monkeypatch.context() as patch:
        patch.setattr("serve_app.store.transfer.rows_file.json", SimpleNamespace(dumps=written))
        # Two lines are written before the transaction has begun.
        summary = write_backup(jobs, copy, None)
    assert summary.rows["jobs"] - 2 == summary.rows["outputs"] - 2 <= 2
    assert len(writer.unfinished()) > 10
    for each in (jobs, writer):
        each.close()
    other = Jobs(other_url)
    assert restore_backup(other, copy, volume, replace=False).rows == summary.rows
    other.close()


def test_a_database_with_jobs_is_replaced_only_with_the_option_and_its_server_stops(database_url, tmp_path, volume):
    jobs, copy = filled(database_url), tmp_path / "copy.gz"
    write_backup(jobs, copy, None)
    jobs.write(1, [JobAccepted(replace(ROW, job_id="later", order=9, queued_seq=9))])
    with pytest.raises(BackupError, match="has jobs already, which --replace lets go"):
        restore_backup(jobs, copy, volume, replace=False)
    assert jobs.job("later") is not None
    restore_backup(jobs, copy, volume, replace=True)
    assert jobs.job("later") is None
    with pytest.raises(StaleEpochError):
        jobs.renew(1)
    jobs.close()


def test_what_is_restored_revives_no_key_that_was_revoked_since_and_loses_none(database_url, tmp_path, volume):
    jobs, copy = filled(database_url), tmp_path / "copy.gz"
    rotated, gone = (replace(KEY, key_id=name, name=name, ends_s=None) for name in ("rotated", "gone"))
    for key in (rotated, gone):
        jobs.query(1, AddKey(key))
    logged_out, _ = new_session("later", "a", "", ("read",), math.inf)
    jobs.query(1, AddKey(logged_out))
    write_backup(jobs, copy, None)
    later = replace(KEY, key_id="later", created_s=200.0, ends_s=None)
    jobs.query(1, AddKey(later, rotated.key_id, grace_s=1e9))
    jobs.query(1, EndKey(gone.key_id))
    jobs.query(1, EndKey(logged_out.key_id))
    kept, _ = new_session("later", "a", "", ("read",), math.inf)
    jobs.query(1, AddKey(kept))
    later_seen = replace(SEEN, number=2, at_s=9.0, what="POST /tenants/keys/gone/revoke")
    jobs.query(1, WriteAudit((later_seen,), 0.0))
    before = jobs.query(0, ListKeys())
    for keep_keys in (True, False):
        assert restore_backup(jobs, copy, volume, replace=True, keep_keys=keep_keys).ended_keys == 0
        assert jobs.query(0, ListKeys()) == before
    sessions = jobs.query(0, FindKeys((kept.key_id, logged_out.key_id)))
    assert [session.key_id for session in sessions if not session.ended(time.time())] == [kept.key_id]
    assert jobs.query(0, FindKey(gone.key_id)).ended(time.time())
    assert jobs.query(0, ReadAudit(9)) == (later_seen, SEEN), "what was done since is not forgotten"
    jobs.close()


def test_keys_that_only_the_copy_knows_end_as_it_is_restored_unless_they_are_to_be_kept(
    database_url, other_url, tmp_path, volume
):
    jobs, copy = filled(database_url), tmp_path / "copy.gz"
    held = replace(KEY, key_id="held", ends_s=None)
    jobs.query(1, AddKey(held))
    write_backup(jobs, copy, None)
    jobs.close()
    other = Jobs(other_url)
    operators = replace(KEY, key_id="operators", tenant="", scopes=("admin",), ends_s=None)
    other.administer(AddKey(operators))
    began_s = time.time()
    assert restore_backup(other, copy, volume, replace=False).ended_keys == 1, "the other one had ended by itself"
    keys = {key.key_id: key for key in other.query(0, ListKeys())}
    assert keys[KEY.key_id] == KEY
    assert keys["operators"] == operators
    assert began_s <= (keys["held"].ends_s or 0.0) <= time.time()
    other.close()


def test_the_time_of_the_last_backup_is_kept_for_good(database_url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = filled(database_url)
    assert jobs.query(0, ReadLastBackup()) is None
    before_s = time.time()
    assert main(["backup", "jobs.gz", "--database-url", database_url]) == 0
    jobs.administer(WriteAudit((), before_s=time.time() + 1))
    assert before_s <= (jobs.query(0, ReadLastBackup()) or 0.0) <= time.time()
    jobs.close()


@pytest.mark.parametrize("damage", ["cut", "no gzip", "of others", "of another version", "a row less"])
def test_what_is_no_whole_copy_changes_nothing(database_url, tmp_path, volume, damage):
    jobs, copy = filled(database_url), tmp_path / "copy.gz"
    write_backup(jobs, copy, None)
    before = state(jobs)
    lines = gzip.decompress(copy.read_bytes()).splitlines(keepends=True)
    match damage:
        case "cut":
            copy.write_bytes(copy.read_bytes()[:-20])
        case "no gzip":
            copy.write_bytes(b"".join(lines))
        case "of others":
            copy.write_bytes(gzip.compress(b'{"a": 1}\n'))
        case "of another version":
            copy.write_bytes(gzip.compress(lines[0].replace(b'"schema":', b'"schema":9') + b"".join(lines[1:])))
        case "a row less":
            kept = [line for line in lines if b'"done"' not in line]
            copy.write_bytes(gzip.compress(b"".join(kept)))
    with pytest.raises(BackupError, match="nothing is changed"):
        restore_backup(jobs, copy, volume, replace=True)
    assert state(jobs) == before
    jobs.close()


def test_a_copy_that_cannot_be_finished_leaves_the_earlier_one(tmp_path, volume, monkeypatch):
    jobs, copy = filled(f"sqlite:///{tmp_path}/jobs.sqlite"), tmp_path / "copy.gz"
    copy.write_bytes(b"earlier")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_backup(jobs, copy, None)
    assert copy.read_bytes() == b"earlier"
    assert [*tmp_path.glob("*.part")] == []
    jobs.close()


def test_the_command_line_copies_restores_and_names_files_that_are_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "RENEW_S", 0.01)
    volume = Volume({area: tmp_path / area for area in AREAS})
    volume.write(FILE, b"12345")
    filled(f"sqlite:///{tmp_path}/jobs.sqlite").close()
    url, other = f"sqlite:///{tmp_path}/jobs.sqlite", f"sqlite:///{tmp_path}/other.sqlite"
    assert main(["backup", "copy.gz", "--files", "--database-url", url]) == 0
    assert "copy.gz: 2 jobs" in capsys.readouterr().out
    held = Jobs(url)
    held.administer(AddKey(replace(KEY, key_id="held", ends_s=None)))
    held.close()
    assert main(["backup", "copy.gz", "--files", "--database-url", url]) == 0
    assert main(["restore", "copy.gz", "--database-url", other]) == 0
    assert "1 of its API keys hold no longer" in capsys.readouterr().err
    volume.delete(FILE)
    assert main(["restore", "copy.gz", "--database-url", other]) == 1
    assert "--replace" in capsys.readouterr().err
    capsys.readouterr()
    assert main(["restore", "copy.gz", "--replace", "--keep-keys", "--database-url", other]) == 1
    assert capsys.readouterr().out == "output/sub/ä.png is missing, or of another size\n"
    assert main(["restore", "none.gz", "--database-url", other]) == 1


def everything(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)


def a_page_in_the_middle(path: Path) -> None:
    with path.open("r+b") as file:
        for page in range(8, path.stat().st_size // 4096, 3):
            file.seek(page * 4096)
            file.write(os.urandom(4096))


@pytest.mark.parametrize("spoil", [everything, a_page_in_the_middle])
def test_a_copy_takes_the_place_of_a_damaged_file_whose_own_companions_do_no_harm(tmp_path, monkeypatch, capsys, spoil):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "RENEW_S", 0.01)
    path = tmp_path / "jobs.sqlite"
    url = f"sqlite:///{path}"
    filled(url).close()
    assert main(["backup", "copy.gz", "--database-url", url]) == 0
    spoil(path)
    spoilt = path.read_bytes()
    for companion in ("-wal", "-shm"):
        path.with_name(path.name + companion).write_bytes(os.urandom(40_000))

    assert main(["restore", "copy.gz", "--database-url", url]) == 1
    assert "serve-app restore --replace BACKUP" in capsys.readouterr().err
    (tmp_path / "half.gz").write_bytes((tmp_path / "copy.gz").read_bytes()[:200])
    assert main(["restore", "half.gz", "--replace", "--database-url", url]) == 1
    assert path.read_bytes() == spoilt, "nothing is changed"

    assert main(["restore", "copy.gz", "--replace", "--database-url", url]) == 0
    [aside] = tmp_path.glob("jobs.sqlite.damaged-*[0-9]")
    assert aside.read_bytes() == spoilt
    assert str(aside) in capsys.readouterr().err
    restored = Jobs(url)
    assert [row.job_id for row in restored.rows(["done", "runs"])] == ["done", "runs"]
    restored.close()
    assert [*tmp_path.glob("*.restoring*")] == []


def a_page_of_the_audit_log(path: Path) -> None:
    """Spoil a page with rows in the middle of the table, found by what the rows say."""
    pages = [path.read_bytes()[at : at + 4096] for at in range(0, path.stat().st_size, 4096)]
    logged = [number for number, page in enumerate(pages) if b"POST /prompt" in page]
    with path.open("r+b") as file:
        file.seek(logged[len(logged) // 2] * 4096)
        file.write(os.urandom(4096))


def test_keys_and_what_is_left_of_the_audit_log_are_taken_over_from_a_damaged_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "RENEW_S", 0.01)
    path = tmp_path / "jobs.sqlite"
    url = f"sqlite:///{path}"
    jobs = filled(url)
    revoked, later = (replace(KEY, key_id=name, ends_s=None) for name in ("revoked", "later"))
    jobs.administer(AddKey(revoked))
    write_backup(jobs, tmp_path / "copy.gz", None)
    jobs.administer(EndKey("revoked"))
    jobs.administer(AddKey(later))
    jobs.administer(WriteAudit(tuple(replace(SEEN, number=n, at_s=float(n)) for n in range(2, 500)), 0.0))
    before = jobs.query(0, ListKeys())
    jobs.close()
    a_page_of_the_audit_log(path)
    assert main(["restore", "copy.gz", "--replace", "--database-url", url]) == 0
    said = capsys.readouterr().err
    restored = Jobs(url)
    assert restored.query(0, ListKeys()) == before
    kept = {entry.number for entry in restored.query(0, ReadAudit(1000))}
    assert {1, 2, 499} < kept
    assert 400 < len(kept) < 499
    restored.close()
    assert "3 API keys are taken over from it\n" in said
    assert f"{len(kept)} entries of the audit log are taken over from it; others cannot be read any more" in said
