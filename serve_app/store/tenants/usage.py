"""The GPU time of tenants and the bytes that their jobs saved: a row for each tenant and UTC day.

The time is written with the ends of jobs, the bytes with the names that files are given, once however often a node
runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from serve_app.store.database.changes import TenantUsed
from serve_app.store.database.schema import USAGE


def write(connection: sa.Connection, used: Sequence[TenantUsed]) -> None:
    """Store totals, replacing earlier ones; the last of several of a tenant and day wins."""
    totals = {(each.tenant, each.day): {"tenant": each.tenant, "day": each.day, "gpu_s": each.gpu_s} for each in used}
    if not totals:
        return
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(USAGE)
    newer = {"gpu_s": statement.excluded.gpu_s}
    statement = statement.on_conflict_do_update(index_elements=["tenant", "day"], set_=newer)
    connection.execute(statement, list(totals.values()))


def add_saved(connection: sa.Connection, tenant: str, day: int, size: int) -> None:
    """Add the bytes of files that a job saves to its tenant's day."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    adding = insert(USAGE).values(tenant=tenant, day=day, gpu_s=0.0, saved_bytes=size)
    summed = {"saved_bytes": USAGE.c.saved_bytes + adding.excluded.saved_bytes}
    connection.execute(adding.on_conflict_do_update(index_elements=["tenant", "day"], set_=summed))


def read(connection: sa.Connection, since_day: int) -> list[TenantUsed]:
    """Return the totals from a day on."""
    rows = connection.execute(sa.select(USAGE).where(USAGE.c.day >= since_day).order_by(USAGE.c.day, USAGE.c.tenant))
    return [TenantUsed("", row.tenant, int(row.day), float(row.gpu_s)) for row in rows]
