"""Backups of the database as one file that SQLite and PostgreSQL can restore, with a list of the stored files.

Written in one snapshot transaction, while a server works on the database. It contains the credentials of unfinished
jobs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from serve_app.errors import BackupError
from serve_app.store.database.insert_once import insert_once
from serve_app.store.database.jobs import Jobs
from serve_app.store.database.schema import API_KEYS, AUDIT, JOBS, LEASE, METADATA
from serve_app.store.database.sqlite_file import COMPANIONS
from serve_app.store.files.store import AREAS, WholeStore
from serve_app.store.retention.named_files import StoredPath
from serve_app.store.transfer.rows_file import TABLES, Reader, Row, absent, lines_of, reading, write_lines
from serve_app.store.transfer.salvage import Salvaged, salvaged

FORM = "serve-app backup 1"
RESTORING = ".restoring"
"""What follows the path in the name of a file that is to take the place of a damaged one."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The contents of a backup: rows by table, files by area. made_s: Unix time.

    absent: listed files that the store lacks or has in another size; None without a list. ended_keys: the API keys
    that were ended by the restore. salvaged: rows of these tables that were read from a damaged file.
    """

    made_s: float
    rows: Counter[str] = field(default_factory=Counter)
    files: Counter[str] = field(default_factory=Counter)
    absent: tuple[StoredPath, ...] | None = None
    ended_keys: int = 0
    salvaged: Mapping[str, Salvaged] = field(default_factory=dict)


def write_backup(jobs: Jobs, path: Path, store: WholeStore | None) -> Summary:
    """Write a backup of the database, and of the list of a store's files if given. Only its owner can read it.

    Errors: OSError; DatabaseAwayError, StoreError. An earlier file at the path stays until the backup is complete.
    """
    summary = Summary(time.time())
    chosen = {table: sa.select(table) for table in TABLES}
    files = None if store is None else {area: store.inventory(area) for area in AREAS}
    with jobs.snapshot() as connection:
        header = {"form": FORM, "made_s": summary.made_s}
        write_lines(path, lines_of(header, connection, chosen, files, summary.rows, summary.files))
    return summary


def restore_backup(jobs: Jobs, path: Path, store: WholeStore, *, replace: bool, keep_keys: bool = False) -> Summary:
    """Replace the contents of a database by a backup, all or nothing, and compare its files with a store's.

    A server that uses the database loses its lease. replace: whether existing jobs may be deleted. keep_keys: whether
    API keys that only the backup has stay valid; keys that the database has stay as they are. Errors: OSError;
    BackupError for an incomplete backup, or one of other tables; DatabaseAwayError, StoreError.
    """
    with reading(path, FORM, "backup") as (head, lines), jobs.replacing() as connection:
        if not replace and connection.execute(sa.select(JOBS.c.job_id).limit(1)).first() is not None:
            raise BackupError("the database has jobs already, which --replace lets go; nothing is changed")
        summary, sizes = _restore(jobs, connection, head, lines, path, keep_keys=keep_keys)
    return summary if sizes is None else dataclasses.replace(summary, absent=absent(sizes, store))


def restore_over_damaged(url: str, path: Path, store: WholeStore, *, keep_keys: bool = False) -> tuple[Summary, Path]:
    """Replace a damaged SQLite file by a backup; return also the new path of that file.

    The restored file is complete before anything is moved. Readable API keys and audit entries of the damaged file are
    taken over. Errors: as `restore_backup`.
    """
    damaged = Path(str(sa.make_url(url).database)).absolute()
    fresh, aside = (damaged.with_name(f"{damaged.name}{end}") for end in (RESTORING, f".damaged-{int(time.time())}"))
    for end in ("", *COMPANIONS):
        fresh.with_name(fresh.name + end).unlink(missing_ok=True)
    left = {table.name: salvaged(damaged, table) for table in (API_KEYS, AUDIT)}
    jobs = Jobs(f"sqlite:///{fresh}")
    try:
        with jobs.replacing() as connection:
            for name, found in left.items():
                if found.rows:
                    connection.execute(sa.insert(METADATA.tables[name]), found.rows)
        summary = restore_backup(jobs, path, store, replace=False, keep_keys=keep_keys)
    except BaseException:
        jobs.close()
        fresh.unlink()
        raise
    jobs.close()  # which leaves all in one file
    for end in ("", *COMPANIONS):
        with contextlib.suppress(FileNotFoundError):
            damaged.with_name(damaged.name + end).rename(aside.with_name(aside.name + end))
    fresh.rename(damaged)
    return dataclasses.replace(summary, salvaged=left), aside


def _restore(
    jobs: Jobs, connection: sa.Connection, head: Mapping[str, Any], lines: Iterator[Any], path: Path, *, keep_keys: bool
) -> tuple[Summary, dict[StoredPath, int] | None]:
    """Return the summary of the restored rows, and the sizes of the listed files."""
    earlier = int(connection.execute(sa.select(LEASE.c.epoch)).scalar_one())
    keys = [dict(row._mapping) for row in connection.execute(sa.select(API_KEYS))]
    for table in reversed(TABLES):
        if table is not AUDIT:  # which is added to, so that no copy takes back what was done since
            connection.execute(sa.delete(table))
    reader = Reader(partial(_insert, connection))
    reader.take(path, lines)
    # Whoever works on the database notices, and events' cursors go on growing.
    jobs.depose(connection, earlier)
    ended = _settle_keys(connection, keys, keep=keep_keys)
    return Summary(head["made_s"], reader.rows, reader.files, ended_keys=ended), reader.sizes


def _insert(connection: sa.Connection, table: sa.Table, rows: list[Row]) -> None:
    if table is AUDIT:
        insert_once(connection, table, ("at_s",), rows)
    else:
        connection.execute(sa.insert(table), rows)


def _settle_keys(connection: sa.Connection, known: list[dict[str, Any]], *, keep: bool) -> int:
    """Keep the keys that the database had as they were; end others unless `keep`, and return their number.

    A backup has no later revocations and logouts: its sessions are deleted.
    """
    connection.execute(sa.delete(API_KEYS).where(API_KEYS.c.session_of.is_not(None)))
    for key in known:
        connection.execute(sa.delete(API_KEYS).where(API_KEYS.c.key_id == key["key_id"]))
    now_s, ended = time.time(), 0
    if not keep:
        holds = API_KEYS.c.ends_s.is_(None) | (API_KEYS.c.ends_s > now_s)
        ended = connection.execute(sa.update(API_KEYS).where(holds).values(ends_s=now_s)).rowcount
    if known:
        connection.execute(sa.insert(API_KEYS), known)
    return ended
