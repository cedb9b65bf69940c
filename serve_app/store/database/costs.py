"""Measured durations by pool, as rows, so that placement keeps them across restarts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias, cast

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from serve_app.store.database.schema import COSTS

CostKind: TypeAlias = Literal["load", "step", "share"]


class Cost(NamedTuple):
    """A measured duration in a pool: loading a file, or a step of a task by slot time or by device time.

    name: the model file, "" for the steps of tasks without one. samples: the number of measurements.
    """

    pool: str
    kind: CostKind
    name: str
    seconds: float
    samples: int


def read(connection: sa.Connection) -> list[Cost]:
    """Return every stored cost."""
    rows = connection.execute(sa.select(COSTS)).all()
    return [Cost(row.pool, cast(CostKind, row.kind), row.name, row.seconds, row.samples) for row in rows]


def write(connection: sa.Connection, costs: Sequence[Cost]) -> None:
    """Store costs, replacing earlier ones with the same key."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(COSTS)
    newer = {name: statement.excluded[name] for name in ("seconds", "samples")}
    statement = statement.on_conflict_do_update(index_elements=["pool", "kind", "name"], set_=newer)
    if costs:
        connection.execute(statement, [cost._asdict() for cost in costs])
