"""Checkpoints SQLite's write-ahead log in a background thread.

By default the commit that fills the log makes the checkpoint: with a hundred thousand jobs, one POST in 130 then waits
until two hundred scattered pages are on the disk. A checkpoint by another connection delays no commit. Source:
"Write-Ahead Logging", section 2.3.
"""

from __future__ import annotations

import contextlib
import sqlite3
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from serve_app import log

CHANGES = 1000
"""After so many changes, each of some six pages, the log is moved. The commits meanwhile wait longer for the disk, and
five times as many pages take it little longer."""
TRIES = 10
"""How often what was written meanwhile is moved too: once nothing is left, the next commit begins the log anew."""
_log = log.get("store")


class SqliteLog:
    """The log of the file at a path. A deleted file is noticed by the writer, not here."""

    def __init__(self, path: Path) -> None:
        self._file = f"{path.absolute().as_uri()}?mode=rw"
        self._thread = ThreadPoolExecutor(1, "sqlite-log")
        self._changes = 0
        self._moving: Future[None] | None = None

    def wrote(self, changes: int) -> None:
        """Count committed changes, and start a checkpoint once there are enough."""
        self._changes += changes
        if self._changes >= CHANGES and (self._moving is None or self._moving.done()):
            self._changes = 0
            self._moving = self._thread.submit(self._move)

    def close(self) -> None:
        """Return once no checkpoint runs."""
        self._thread.shutdown()

    def _move(self) -> None:
        moved = 0
        try:
            with contextlib.closing(sqlite3.connect(self._file, uri=True)) as connection:
                for _ in range(TRIES):
                    before, (_, _, moved) = moved, connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                    if moved == before:
                        return
        except sqlite3.Error as error:
            _log.warning("what SQLite has logged stays in the log for now: %s", error)
