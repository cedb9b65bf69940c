"""What work takes on each kind of replica, as rows: what placement has learned, kept over restarts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias, cast

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from serve_app.store.database.schema import COSTS

CostKind: TypeAlias = Literal["load", "step", "share"]


class Cost(NamedTuple):
    """How long something takes in a pool: loading a model file, a step of a task on a slot, its share of the device.

    name: the model file, "" for the steps of tasks without one. samples: how often it has been measured.
    """

    pool: str
    kind: CostKind
    name: str
    seconds: float
    samples: int


def read(connection: sa.Connection) -> list[Cost]:
    """Return every cost that is kept."""
    rows = connection.execute(sa.select(COSTS)).all()
    return [Cost(row.pool, cast(CostKind, row.kind), row.name, row.seconds, row.samples) for row in rows]


def write(connection: sa.Connection, costs: Sequence[Cost]) -> None:
    """Keep costs, each in the place of an earlier one of its kind."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(COSTS)
    newer = {name: statement.excluded[name] for name in ("seconds", "samples")}
    statement = statement.on_conflict_do_update(index_elements=["pool", "kind", "name"], set_=newer)
    if costs:
        connection.execute(statement, [cost._asdict() for cost in costs])
