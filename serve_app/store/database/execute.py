"""Executes statements by the driver as cached text, since SQLAlchemy compiles longer than the database runs."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa


def execute(connection: sa.Connection, statement: sa.UpdateBase, rows: Sequence[Mapping[str, Any]]) -> int:
    """Execute a statement for each row, in one call; return the number of changed rows.

    rows: values by the names of the statement's parameters, the same names in each. Errors: as `Connection.execute`.
    """
    if not rows:
        return 0
    text = _compiled(statement, connection.dialect, tuple(rows[0]))
    driver: Any = connection.dialect.dbapi
    cursor = connection.connection.cursor()
    try:
        if len(rows) == 1:
            cursor.execute(text, rows[0])
        else:
            cursor.executemany(text, rows)
        return int(cursor.rowcount)
    except driver.Error as error:
        gone = connection.dialect.is_disconnect(error, connection.connection.dbapi_connection, cursor)
        if gone:
            connection.invalidate(error)
        raise sa.exc.DBAPIError.instance(
            text, None, error, driver.Error, connection_invalidated=gone, dialect=connection.dialect
        ) from error
    finally:
        cursor.close()


@functools.lru_cache(256)
def _compiled(statement: sa.UpdateBase, dialect: sa.Dialect, names: tuple[str, ...]) -> str:
    """Return a statement's text, with its parameters by name."""
    return str(statement.compile(dialect=dialect, column_keys=names))
