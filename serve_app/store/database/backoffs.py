"""The losses of replicas by owners of jobs: one row for each owner, written with each loss."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from serve_app.store.database.changes import OwnerCharged
from serve_app.store.database.schema import BACKOFFS


def write(connection: sa.Connection, charged: Sequence[OwnerCharged]) -> None:
    """Store counts, replacing earlier ones of the same owner; the last of several wins."""
    rows = {(owner := _hash(c)): {"owner": owner, **_values(c)} for c in charged}
    if not rows:
        return
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(BACKOFFS)
    newer = {name: statement.excluded[name] for name in ("count", "last_s", "until_s")}
    statement = statement.on_conflict_do_update(index_elements=["owner"], set_=newer)
    connection.execute(statement, list(rows.values()))


def read(connection: sa.Connection) -> list[OwnerCharged]:
    """Return every stored count."""
    columns = [column for column in BACKOFFS.c if column is not BACKOFFS.c.owner]
    return [OwnerCharged(**row._mapping) for row in connection.execute(sa.select(*columns).order_by(BACKOFFS.c.owner))]


def _values(charged: OwnerCharged) -> dict[str, str | float | None]:
    return {name: getattr(charged, name) for name in ("tenant", "client_id", "count", "last_s", "until_s")}


def _hash(charged: OwnerCharged) -> str:
    return hashlib.sha256(json.dumps([charged.tenant, charged.client_id]).encode()).hexdigest()
