"""Watches SQLite's file at its path: detects that it was deleted or replaced, and restores it from the open file.

A process can write on to a deleted file, and loses all of it when it ends. Source: "How To Corrupt An
SQLite Database File", section 2; "VACUUM INTO".
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path

import sqlalchemy as sa

from serve_app import log
from serve_app.errors import DatabaseDamagedError, DatabaseGoneError
from serve_app.store.files.atomic_write import claim

RESCUED = ".rescued"
"""The suffix of the path of a restored copy, before the time of the copy."""
COMPANIONS = ("-wal", "-shm")
"""What follows the path in the names of the files that SQLite keeps beside the database."""
_UNREADABLE = frozenset({"SQLITE_CORRUPT", "SQLITE_NOTADB"})
_log = log.get("store")


class SqliteFile:
    """The file that this process has open. Without a path, for a database in memory, every check passes.

    path: absolute, or None.
    """

    def __init__(self, url: sa.URL) -> None:
        database = url.database or ""
        named = database not in ("", ":memory:") and not database.startswith("file:")
        self.path = Path(database).absolute() if named else None
        self._opened: os.stat_result | None = None
        self._open: sqlite3.Connection | None = None
        self._copy: Path | None = None
        if self.path is not None and not self.path.exists() and (copies := self._copies()):
            raise DatabaseDamagedError(
                f"{self.path} is not there, but a copy of it from when it was deleted is: {copies[-1]}; "
                "move that to its place, or away to begin anew",
                retry_after_s=2,
            )

    def connected(self) -> None:
        """Remember the file's identity and keep it open; called at the first connection."""
        if self.path is not None and self._opened is None:
            self._opened = self.path.stat()
            # Others may be in use, or not there, at the moment when the file can be had only from one.
            self._open = sqlite3.connect(self.path, check_same_thread=False)
            self._open.execute("SELECT * FROM sqlite_master").fetchall()

    def close(self) -> None:
        """Close the file."""
        if self._open is not None:
            self._open.close()

    def check(self, why: str = "") -> None:
        """Check that the file at the path is the one that is open. Errors: DatabaseGoneError."""
        if self.path is None or self._opened is None or self._is_there():
            return
        what = "has been replaced by another file" if self.path.exists() else "has been deleted"
        if self._copy is not None:
            why = f"; what it held is in {self._copy}: put the right one in its place and start again"
        raise DatabaseGoneError(f"the database {self.path} {what} while it was open{why}", retry_after_s=5)

    def restore(self, engine: sa.Engine) -> None:
        """Write the open file's contents to the path again, if that is free, else next to it.

        Errors: DatabaseGoneError if it is not at the path afterwards.
        """
        if self.path is None or self._opened is None or self._is_there():
            return
        try:
            if self._copy is None:
                copy = self.path.with_name(f"{self.path.name}{RESCUED}-{int(time.time())}")
                self._write(copy)
                self._copy = copy
            if self.path.exists():
                self.check()
            # They belong to the file that is gone: SQLite would take them for the new one's.
            for companion in COMPANIONS:
                self.path.with_name(self.path.name + companion).unlink(missing_ok=True)
            claim(self._copy, self.path)
        except (OSError, sqlite3.Error) as error:
            self.check(f", and cannot be written there again: {error}")
        # Connections in use keep the old file until they are given back; SQLite leaves a file alone that has moved.
        engine.dispose()
        if self._copy is not None:
            self._copy.unlink(missing_ok=True)
        self.close()
        self._opened, self._copy = None, None
        engine.connect().close()
        _log.error("the database %s had been deleted; it was written again, and nothing of it is lost", self.path)

    def _write(self, copy: Path) -> None:
        if self._open is not None:
            self._open.execute("VACUUM INTO ?", (str(copy),))
        with copy.open("rb") as file:
            os.fsync(file.fileno())

    def _is_there(self) -> bool:
        with contextlib.suppress(OSError):
            if self.path is not None and self._opened is not None:
                return os.path.samestat(self.path.stat(), self._opened)
        return False

    def _copies(self) -> list[Path]:
        return [] if self.path is None else sorted(self.path.parent.glob(f"{self.path.name}{RESCUED}-*"))


def damage(path: Path) -> str:
    """Return the damage of a file's pages, "" if there is none or another process has it locked.

    Reads the whole file. The contents of values are not checked. Source: SQLite's "PRAGMA quick_check".
    """
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            [found] = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        return "" if isinstance(error, sqlite3.OperationalError) else str(error)
    return "" if found == "ok" else " ".join(found.split())


def unreadable(error: BaseException) -> bool:
    """Whether an error of the driver says that the file is no database, or a damaged one."""
    code = getattr(getattr(error, "orig", None), "sqlite_errorname", "") or ""
    return code in _UNREADABLE or code.startswith("SQLITE_CORRUPT")
