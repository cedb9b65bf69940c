"""Reads what is left of a table in a damaged SQLite file: rows before and after its damaged pages."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from serve_app.store.database.insert_once import Values


@dataclass(frozen=True, slots=True)
class Salvaged:
    """The rows that were read of a table. whole: whether they are all."""

    rows: list[Values]
    whole: bool


def salvaged(path: Path, table: sa.Table) -> Salvaged:
    """Return the readable rows of a table, in its order. Writes nothing."""
    found: dict[int, tuple[Any, ...]] = {}
    whole = _read(path, table, found)
    rows = [dict(zip(table.c.keys(), values, strict=True)) for _, values in sorted(found.items())]
    sound = [row for row in rows if _is_sound(row, table)]
    return Salvaged(sound, whole and len(sound) == len(rows))


def _read(path: Path, table: sa.Table, found: dict[int, tuple[Any, ...]]) -> bool:
    """Add a table's rows by their row ids; return whether all could be read."""
    columns = ", ".join(f'"{column.name}"' for column in table.c)
    # A table is read in the order of its row ids, up to the first page that is spoilt; so it is from both ends.
    for order in ("ASC", "DESC"):
        with (
            contextlib.suppress(sqlite3.DatabaseError),
            contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection,
        ):
            for row_id, *values in connection.execute(
                f'SELECT rowid, {columns} FROM "{table.name}" ORDER BY rowid {order}'
            ):
                found.setdefault(row_id, tuple(values))
            return True
    return False


def _is_sound(row: Values, table: sa.Table) -> bool:
    """Whether each value is of its column's type."""
    return all(
        column.nullable if row[column.name] is None else isinstance(row[column.name], column.type.python_type)
        for column in table.c
    )
