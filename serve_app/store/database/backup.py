"""Backups of the database as one file that SQLite and PostgreSQL can restore, with a list of the stored files.

Written in one snapshot transaction, while a server works on the database. Gzipped JSON, one value per line: a header;
for each table its name and columns, then its rows; for each area of files its name, then [path, bytes, Unix time of the
last change]; and the numbers of rows, without which it is incomplete. It contains the credentials of unfinished jobs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import os
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa

from serve_app.errors import BackupError
from serve_app.store.database.insert_once import insert_once
from serve_app.store.database.jobs import Jobs
from serve_app.store.database.salvage import Salvaged, salvaged
from serve_app.store.database.schema import API_KEYS, AUDIT, JOBS, LEASE, METADATA, REVISION, REVISIONS
from serve_app.store.database.sqlite_file import COMPANIONS
from serve_app.store.files.store import AREAS, WholeStore
from serve_app.store.retention.named_files import StoredPath

FORM = "serve-app backup 1"
RESTORING = ".restoring"
"""What follows the path in the name of a file that is to take the place of a damaged one."""
ROWS = 500
"""How many rows are read and written at once."""


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
    summary, part = Summary(time.time()), path.with_name(f"{path.name}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as raw:
            with gzip.open(raw, "wt", encoding="utf-8", compresslevel=5) as file:
                for line in _lines(jobs, store, summary):
                    file.write(json.dumps(line, separators=(",", ":")) + "\n")
            raw.flush()
            os.fsync(raw.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return summary


def restore_backup(jobs: Jobs, path: Path, store: WholeStore, *, replace: bool, keep_keys: bool = False) -> Summary:
    """Replace the contents of a database by a backup, all or nothing, and compare its files with a store's.

    A server that uses the database loses its lease. replace: whether existing jobs may be deleted. keep_keys: whether
    API keys that only the backup has stay valid; keys that the database has stay as they are. Errors: OSError;
    BackupError for an incomplete backup, or one of other tables; DatabaseAwayError, StoreError.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file, jobs.replacing() as connection:
            summary, files = _restore(connection, file, replace=replace, keep_keys=keep_keys)
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BackupError(f"{path} is no whole backup: {error}; nothing is changed") from error
    return summary if files is None else dataclasses.replace(summary, absent=_absent(files, store))


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


def _lines(jobs: Jobs, store: WholeStore | None, summary: Summary) -> Iterator[Any]:
    yield {"form": FORM, "schema": REVISION, "made_s": summary.made_s}
    with jobs.snapshot() as connection:
        for table in _tables():
            yield {"table": table.name, "columns": table.c.keys()}
            for row in connection.execution_options(yield_per=ROWS).execute(sa.select(table)):
                summary.rows[table.name] += 1
                yield list(row)
    for area in AREAS if store is not None else ():
        yield {"area": area}
        for ref, size, modified_s in store.inventory(area) if store is not None else ():
            summary.files[area] += 1
            yield [ref.path, size, modified_s]
    yield {"rows": dict(summary.rows), "files": dict(summary.files)}


def _restore(
    connection: sa.Connection, file: IO[str], *, replace: bool, keep_keys: bool
) -> tuple[Summary, dict[StoredPath, int] | None]:
    """Return the summary of the restored rows, and the sizes of the listed files."""
    lines: Iterator[Any] = map(json.loads, file)
    head = next(lines, None)
    if not isinstance(head, dict) or head.get("form") != FORM:
        raise BackupError(f"{file.name} is no backup of this server's; nothing is changed")
    if head["schema"] != REVISION:
        raise BackupError(
            f"{file.name} has tables of revision {head['schema']}, this release has {REVISION}: restore it with the "
            "release that made it, which this one then brings up to date; nothing is changed"
        )
    if not replace and connection.execute(sa.select(JOBS.c.job_id).limit(1)).first() is not None:
        raise BackupError("the database has jobs already, which --replace lets go; nothing is changed")
    earlier = connection.execute(sa.select(sa.func.max(LEASE.c.epoch))).scalar() or 0
    keys = [dict(row._mapping) for row in connection.execute(sa.select(API_KEYS))]
    for table in reversed(_tables()):
        if table is not AUDIT:  # which is added to, so that no copy takes back what was done since
            connection.execute(sa.delete(table))
    reading = _Reading(connection, Summary(head["made_s"]))
    for line in lines:
        reading.take(line)
    if not reading.whole:
        raise BackupError(f"{file.name} is no whole backup: it ends too soon, or rows are missing; nothing is changed")
    # Whoever works on the database notices, and events' cursors go on growing.
    epoch = max(earlier, connection.execute(sa.select(sa.func.max(LEASE.c.epoch))).scalar() or 0) + 1
    connection.execute(sa.update(LEASE).values(epoch=epoch, holder=""))
    ended = _settle_keys(connection, keys, keep=keep_keys)
    return dataclasses.replace(reading.summary, ended_keys=ended), reading.files


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


class _Reading:
    """Reads a backup line by line into a database. files: the sizes of the listed files; None without a list."""

    def __init__(self, connection: sa.Connection, summary: Summary) -> None:
        self._connection = connection
        self._tables = {table.name: table for table in _tables()}
        self._section: dict[str, Any] = {}
        self._lines: list[list[Any]] = []
        self.summary = summary
        self.files: dict[StoredPath, int] | None = None
        self.whole = False

    def take(self, line: Any) -> None:
        """Apply one line. Errors: BackupError."""
        if isinstance(line, list):
            self._lines.append(line)
            if len(self._lines) == ROWS:
                self._put()
            return
        self._put()
        self._section = line
        if "area" in line:
            self.files = self.files or {}
        elif "table" in line:
            table = self._tables.get(line["table"])
            if table is None or line["columns"] != table.c.keys():
                raise BackupError(f"table {line['table']} of the backup is not this release's; nothing is changed")
        else:
            self.whole = (line["rows"], line["files"]) == (dict(self.summary.rows), dict(self.summary.files))

    def _put(self) -> None:
        lines, self._lines = self._lines, []
        if lines and "table" in self._section:
            table = self._tables[self._section["table"]]
            rows = [dict(zip(self._section["columns"], line, strict=True)) for line in lines]
            if table is AUDIT:
                insert_once(self._connection, table, ("at_s",), rows)
            else:
                self._connection.execute(sa.insert(table), rows)
            self.summary.rows[table.name] += len(rows)
        elif lines and self.files is not None:
            area = self._section["area"]
            self.files.update({(area, path): size for path, size, _ in lines})
            self.summary.files[area] += len(lines)


def _tables() -> list[sa.Table]:
    return [table for table in METADATA.sorted_tables if table is not REVISIONS]


def _absent(files: dict[StoredPath, int], store: WholeStore) -> tuple[StoredPath, ...]:
    there: dict[StoredPath, int] = {}
    for area in AREAS:
        there.update({(area, ref.path): size for ref, size, _ in store.inventory(area)})
    return tuple(sorted(place for place, size in files.items() if there.get(place) != size))
