"""Moves a tenant from one server's database to another's, as a file: its jobs, waiting ones too, keys and all else.

Either side is one transaction under which no scheduler can write, and after which the server's scheduler begins anew
from the database. What has left one database is in the file, so a job is never in both and never in neither.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from serve_app.errors import TenantMoveError
from serve_app.store.database.jobs import Jobs
from serve_app.store.database.schema import (
    API_KEYS,
    ASSET_USES,
    ASSETS,
    AUDIT,
    BACKOFFS,
    COSTS,
    COUNTERS,
    DELIVERIES,
    DOOMED_FILES,
    EXPORTS,
    IDEMPOTENCY_KEYS,
    JOBS,
    LABELS,
    LEASE,
    OUTPUTS,
    PAUSES,
    POOL_SPECS,
    RESERVATIONS,
    STORED_BYTES,
    STORED_FILES,
    USAGE,
    WEBHOOKS,
)
from serve_app.store.files.store import AREAS, WholeStore
from serve_app.store.tenants.tenants import folder, is_tenant, placed_key
from serve_app.store.transfer.rows_file import Reader, Row, absent, lines_of, reading, write_lines

FORM = "serve-app tenant 1"
SERVERS = (LEASE, COSTS, POOL_SPECS, AUDIT)
"""Tables whose rows are a server's, and stay there."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What has been moved: rows by table, listed files by area."""

    tenant: str
    rows: Counter[str]
    files: Counter[str]


def export_tenant(jobs: Jobs, tenant: str, path: Path, store: WholeStore) -> Moved:
    """Move all rows of a tenant from the database into a file, with the list of its stored files.

    A server that uses the database goes on without them. Errors: OSError; TenantMoveError if there is no such tenant;
    DatabaseAwayError, StoreError. After an error the tenant is still in the database, and the file counts for nothing.
    """
    if not is_tenant(tenant):
        raise TenantMoveError(f"{tenant!r} is no tenant's name; the operator's own jobs cannot be moved")
    moved, inventory = (
        Moved(tenant, Counter(), Counter()),
        {area: store.inventory(area, folder(tenant)) for area in AREAS},
    )
    with jobs.replacing() as connection:
        header = {"form": FORM, "tenant": tenant, "made_s": time.time(), "epoch": jobs.depose(connection)}
        chosen = {table: _of(table, where) for table, where in tables_of(tenant).items()}
        write_lines(path, lines_of(header, connection, chosen, inventory, moved.rows, moved.files))
        if not moved.rows:
            raise TenantMoveError(f"the database has nothing of a tenant {tenant!r}; nothing is changed")
        for table, where in reversed(list(tables_of(tenant).items())):
            connection.execute(sa.delete(table).where(where))
    return moved


def import_tenant(jobs: Jobs, path: Path, store: WholeStore, *, without_files: bool = False) -> Moved:
    """Move the tenant in a file into the database, all or nothing. Its jobs come after those that are there.

    A server that uses the database goes on with them. without_files: also if stored files of its list are missing.
    Errors: OSError; BackupError for an incomplete file, or one of other tables; TenantMoveError if the tenant is there
    already, or its files are not; DatabaseAwayError, StoreError.
    """
    with reading(path, FORM, "tenant") as (head, lines), jobs.replacing() as connection:
        tenant = str(head["tenant"])
        for table, where in tables_of(tenant).items():
            if (
                connection.execute(sa.select(sa.literal(1)).select_from(table).where(where).limit(1)).first()
                is not None
            ):
                raise TenantMoveError(
                    f"the database has a tenant {tenant!r} already, in {table.name}; nothing is changed"
                )
        reader = Reader(_Placing(connection, jobs.next_order()).insert)
        reader.take(path, lines)
        missing = () if without_files else absent(reader.sizes or {}, store, folder(tenant))
        if missing:
            area, first = missing[0]
            raise TenantMoveError(
                f"{len(missing)} stored files of tenant {tenant!r} are missing here, or of another size, such as "
                f"{area}/{first}: copy its folders {folder(tenant)!r} here, or give --without-files; nothing is changed"
            )
        jobs.depose(connection, above=int(head["epoch"]))
    return Moved(tenant, reader.rows, reader.files)


def tables_of(tenant: str) -> Mapping[sa.Table, sa.ColumnElement[bool]]:
    """Return which rows of each table are a tenant's, a table after those whose rows its condition looks at."""
    jobs, webhooks = JOBS.c.tenant == tenant, WEBHOOKS.c.tenant == tenant
    job_ids = sa.select(JOBS.c.job_id).where(jobs)
    of_tenant = (IDEMPOTENCY_KEYS, ASSETS, API_KEYS, STORED_FILES, STORED_BYTES, USAGE, BACKOFFS, EXPORTS)
    return {
        JOBS: jobs,
        LABELS: LABELS.c.order.in_(sa.select(JOBS.c.order).where(jobs)),
        **{table: table.c.job_id.in_(job_ids) for table in (OUTPUTS, ASSET_USES, RESERVATIONS)},
        WEBHOOKS: webhooks,
        DELIVERIES: DELIVERIES.c.webhook_id.in_(sa.select(WEBHOOKS.c.webhook_id).where(webhooks)),
        PAUSES: (PAUSES.c.kind == "tenant") & (PAUSES.c.name == tenant),
        COUNTERS: sa.or_(
            *(COUNTERS.c.key.startswith(placed_key(f"{area}/", tenant), autoescape=True) for area in AREAS)
        ),
        DOOMED_FILES: DOOMED_FILES.c.path.startswith(f"{folder(tenant)}/", autoescape=True),
        **{table: table.c.tenant == tenant for table in of_tenant},
    }


def _of(table: sa.Table, where: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Select rows of a table; jobs in the order of their submission."""
    return sa.select(table).where(where).order_by(*([JOBS.c.order] if table is JOBS else []))


class _Placing:
    """Inserts rows. Jobs, which come first, get places in the order of submission from `next_order` on."""

    def __init__(self, connection: sa.Connection, next_order: int) -> None:
        self._connection = connection
        self._free = count(next_order)
        self._orders: dict[int, int] = {}

    def insert(self, table: sa.Table, rows: list[Row]) -> None:
        """Insert rows of a table."""
        if table is JOBS:
            rows = [self._placed(row) for row in rows]
        elif table is LABELS:
            rows = [{**row, "order": self._orders[row["order"]]} for row in rows]
        self._connection.execute(sa.insert(table), rows)

    def _placed(self, row: Row) -> Row:
        earlier, order = row["order"], next(self._free)
        self._orders[earlier] = order
        # A number that no client chose is the place in the order, negated at the front of the queue.
        number = {-earlier: -order, earlier: order}.get(row["number"], row["number"])
        return {**row, "order": order, "number": number}
