"""Databases of SQLite that have their tables: to make all of them takes longer than most tests that need one."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from serve_app.store.database.database import Database


def made(path: Path) -> str:
    """Return the URL of a database that is made at a path, as one that was opened and closed before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_opened_once())
    return f"sqlite:///{path}"


@cache
def _opened_once() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "jobs.sqlite"
        Database(f"sqlite:///{path}").close()
        return path.read_bytes()
