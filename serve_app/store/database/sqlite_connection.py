"""How each connection to SQLite's file is set up, before anything is asked by it."""

from __future__ import annotations

import sqlite3
import time

BUSY_S = 30
"""How long one waits for others that write."""
LONGEST_LOG_PAGES = 16_000
"""From so many pages in the log on a commit moves them into the file itself, if `sqlite_log.py` has not."""


def prepare(connection: sqlite3.Connection, _record: object) -> None:
    """A log that is written ahead lets readers go on beside the writer; FULL keeps a committed job through a power cut.

    What is deleted, credentials among it, is overwritten in the file too.
    """
    connection.execute(f"PRAGMA busy_timeout={BUSY_S * 1000}")
    _write_ahead(connection)
    for pragma in ("synchronous=FULL", "secure_delete=ON", f"wal_autocheckpoint={LONGEST_LOG_PAGES}"):
        connection.execute(f"PRAGMA {pragma}")


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Have the file written by a log ahead, as it stays from the first time on.

    Where several do that at once SQLite refuses all but one without waiting, for waiting could be for ever.
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
