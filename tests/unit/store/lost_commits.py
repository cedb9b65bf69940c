"""A database whose answers to COMMIT are lost on the way."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Any

import psycopg
import sqlalchemy as sa


@contextlib.contextmanager
def losing_commits(engine: sa.Engine) -> Iterator[None]:
    """Let every other COMMIT be made and then fail, as when the connection breaks before its answer arrives."""
    error = sqlite3.OperationalError if engine.dialect.name == "sqlite" else psycopg.OperationalError
    commit, lost = engine.dialect.do_commit, [False]

    def committed(connection: Any) -> None:
        commit(connection)
        lost[0] = not lost[0]
        if lost[0]:
            raise error("the connection broke")

    engine.dialect.do_commit = committed  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        engine.dialect.do_commit = commit  # type: ignore[method-assign, assignment]
