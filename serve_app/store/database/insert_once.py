"""Inserts rows that may exist already, since the answer to an earlier COMMIT may have been lost."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from serve_app.store.database.execute import execute

Values = dict[str, Any]


def insert_once(
    connection: sa.Connection, table: sa.Table, same: Sequence[str], rows: Sequence[Values]
) -> Values | None:
    """Insert rows unless they exist; return the first for which a row exists that differs in `same`, or None."""
    if execute(connection, _inserting(table, connection.dialect.name), rows) == len(rows):
        return None
    return next((row for row in rows if not _is_there(connection, table, same, row)), None)


@functools.cache
def _inserting(table: sa.Table, dialect: str) -> Any:
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return insert(table).on_conflict_do_nothing()


def _is_there(connection: sa.Connection, table: sa.Table, same: Sequence[str], row: Mapping[str, Any]) -> bool:
    there = sa.and_(*(table.c[column].is_not_distinct_from(row[column]) for column in same))
    return connection.execute(sa.select(sa.literal(1)).select_from(table).where(there)).first() is not None
