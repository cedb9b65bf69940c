"""Connections to SQLite's file, set up by several at once."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

from serve_app.store.database import sqlite_connection

AT_ONCE = 6
FILES = 20


def test_of_those_who_open_a_file_of_another_journal_at_once_none_is_refused(tmp_path: Path) -> None:
    failed: list[sqlite3.Error] = []

    def open_it(path: Path, together: threading.Barrier) -> None:
        connection = sqlite3.connect(path)
        together.wait()
        try:
            sqlite_connection.prepare(connection, None)
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        except sqlite3.Error as error:
            failed.append(error)
        finally:
            connection.close()

    for n in range(FILES):
        path, together = tmp_path / str(n), threading.Barrier(AT_ONCE)
        with sqlite3.connect(path) as made:
            made.execute("CREATE TABLE a (b)")
        made.close()
        threads = [threading.Thread(target=open_it, args=(path, together)) for _ in range(AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []
