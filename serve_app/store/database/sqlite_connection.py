"""Sets up each connection to SQLite's file, before its first statement."""

from __future__ import annotations

import sqlite3
import time

BUSY_S = 30
"""How long one waits for others that write."""
LONGEST_LOG_PAGES = 16_000
"""The pages in the log from which on a commit makes a checkpoint, if `sqlite_log.py` has not."""


def prepare(connection: sqlite3.Connection, _record: object) -> None:
    """Set write-ahead logging, so that readers do not wait, and FULL, so that commits survive a power cut.

    Deleted data, such as credentials, is overwritten in the file.
    """
    connection.execute(f"PRAGMA busy_timeout={BUSY_S * 1000}")
    _write_ahead(connection)
    for pragma in ("synchronous=FULL", "secure_delete=ON", f"wal_autocheckpoint={LONGEST_LOG_PAGES}"):
        connection.execute(f"PRAGMA {pragma}")


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch the file to write-ahead logging, which is persistent.

    If several connections do it at once, SQLite refuses all but one without waiting.
    """
    until_s = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until_s:
                raise
        time.sleep(0.02)
