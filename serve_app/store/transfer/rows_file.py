"""A file of tables' rows and of stored files' sizes, which SQLite and PostgreSQL can both take in.

Gzipped JSON, one value per line: a header; for each table its name and columns, then its rows; for each area of files
its name, then [path, bytes, Unix time of the last change]; and the numbers of rows, without which it is incomplete.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeAlias

import sqlalchemy as sa

from serve_app.errors import BackupError
from serve_app.store.database.schema import METADATA, REVISION, REVISIONS
from serve_app.store.files.store import AREAS, Area, FileRef, WholeStore
from serve_app.store.retention.named_files import StoredPath

Row: TypeAlias = dict[str, Any]
ROWS = 500
"""How many rows are read and written at once."""
TABLES = tuple(table for table in METADATA.sorted_tables if table is not REVISIONS)
"""Those that a file can have, a table after those that it refers to."""


def write_lines(path: Path, lines: Iterable[Any]) -> None:
    """Write values to a file that only its owner can read.

    Errors: OSError, and what the lines raise. An earlier file at the path stays until the new one is complete.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as raw:
            with gzip.open(raw, "wt", encoding="utf-8", compresslevel=5) as file:
                for line in lines:
                    file.write(json.dumps(line, separators=(",", ":")) + "\n")
            raw.flush()
            os.fsync(raw.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def lines_of(
    header: Mapping[str, Any],
    connection: sa.Connection,
    chosen: Mapping[sa.Table, sa.Select[Any]],
    files: Mapping[Area, Iterable[tuple[FileRef, int, float]]] | None,
    rows: Counter[str],
    sizes: Counter[str],
) -> Iterator[Any]:
    """Yield the lines of a file. chosen: the rows of each table. rows, sizes: count what is yielded, by table and area.

    files: as a store's inventories have them, None for no list.
    """
    yield {**header, "schema": REVISION}
    for table, select in chosen.items():
        yield {"table": table.name, "columns": table.c.keys()}
        for row in connection.execute(select, execution_options={"yield_per": ROWS}):
            rows[table.name] += 1
            yield list(row)
    for area, found in (files or {}).items():
        yield {"area": area}
        for ref, size, modified_s in found:
            sizes[area] += 1
            yield [ref.path, size, modified_s]
    yield {"rows": dict(rows), "files": dict(sizes)}


@contextlib.contextmanager
def reading(path: Path, form: str, what: str) -> Iterator[tuple[Mapping[str, Any], Iterator[Any]]]:
    """Open a file of this form; yield its header and the other lines. what: such as "backup".

    Errors: OSError; BackupError for a file of another form or release, or one that is damaged further on.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines = map(json.loads, file)
            yield _header(path, next(lines, None), form, what), lines
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BackupError(f"{path} is no whole {what}: {error}; nothing is changed") from error


def _header(path: Path, head: Any, form: str, what: str) -> Mapping[str, Any]:
    if not isinstance(head, dict) or head.get("form") != form:
        raise BackupError(f"{path} is no {what} of this server's; nothing is changed")
    if head["schema"] != REVISION:
        raise BackupError(
            f"{path} has tables of revision {head['schema']}, this release has {REVISION}: restore it with the "
            "release that made it, which this one then brings up to date; nothing is changed"
        )
    return head


class Reader:
    """Takes in the lines of a file after its header. insert: takes rows of a table.

    rows, files: the numbers of those taken in, by table and area. sizes: those of the listed files; None without a
    list.
    """

    def __init__(self, insert: Callable[[sa.Table, list[Row]], None]) -> None:
        self._insert = insert
        self._tables = {table.name: table for table in TABLES}
        self._section: dict[str, Any] = {}
        self._lines: list[list[Any]] = []
        self._whole = False
        self.rows: Counter[str] = Counter()
        self.files: Counter[str] = Counter()
        self.sizes: dict[StoredPath, int] | None = None

    def take(self, path: IO[str] | Path, lines: Iterable[Any]) -> None:
        """Take in all lines. Errors: BackupError for a table of another release, or if some are missing."""
        for line in lines:
            self._take(line)
        if not self._whole:
            raise BackupError(f"{path} is no whole copy: it ends too soon, or rows are missing; nothing is changed")

    def _take(self, line: Any) -> None:
        if isinstance(line, list):
            self._lines.append(line)
            if len(self._lines) == ROWS:
                self._put()
            return
        self._put()
        self._section = line
        if "area" in line:
            self.sizes = self.sizes or {}
        elif "table" in line:
            table = self._tables.get(line["table"])
            if table is None or line["columns"] != table.c.keys():
                raise BackupError(f"table {line['table']} of the file is not this release's; nothing is changed")
        else:
            self._whole = (line["rows"], line["files"]) == (dict(self.rows), dict(self.files))

    def _put(self) -> None:
        lines, self._lines = self._lines, []
        if lines and "table" in self._section:
            table = self._tables[self._section["table"]]
            self._insert(table, [dict(zip(self._section["columns"], line, strict=True)) for line in lines])
            self.rows[table.name] += len(lines)
        elif lines and self.sizes is not None:
            area = self._section["area"]
            self.sizes.update({(area, path): size for path, size, _ in lines})
            self.files[area] += len(lines)


def absent(sizes: Mapping[StoredPath, int], store: WholeStore, subfolder: str = "") -> tuple[StoredPath, ...]:
    """Return the listed files that a store lacks, or has in another size. subfolder: where all of them lie."""
    there: dict[StoredPath, int] = {}
    for area in AREAS:
        there.update({(area, ref.path): size for ref, size, _ in store.inventory(area, subfolder)})
    return tuple(sorted(place for place, size in sizes.items() if there.get(place) != size))
