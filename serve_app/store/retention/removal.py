"""Removes ended jobs with their files, without leaving files behind if the process ends halfway.

The transaction that deletes the jobs' rows puts their files on a list. A file leaves the list after it is deleted, or
at once if another job or an asset uses it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import sqlalchemy as sa

from serve_app.store.database.insert_once import Values, insert_once
from serve_app.store.database.query_scope import ServerScoped, TenantScoped
from serve_app.store.database.schema import ASSET_USES, DELIVERIES, DOOMED_FILES, JOBS, LABELS, OUTPUTS, RESERVATIONS
from serve_app.store.files.reserved import shown
from serve_app.store.retention.named_files import StoredPath, places

PORTION = 200
"""How many jobs, or files, one transaction concerns."""
DELETED_AREAS = ("output", "temp")
"""Whose files are jobs' own: what a node shows of the input area, its client has put there."""


class Removed(NamedTuple):
    """The result of a removal. ended: removed jobs. unfinished: jobs that have not ended. more: whether some are left.

    files: the outputs of the removed jobs.
    """

    ended: tuple[str, ...]
    unfinished: tuple[str, ...]
    files: tuple[StoredPath, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class RemoveJobs(TenantScoped):
    """Removes ended jobs, these or all, at most PORTION of them. tenant: only its jobs; "" for all."""

    writes: ClassVar[bool] = True

    job_ids: tuple[str, ...] | None
    tenant: str = ""

    def execute(self, connection: sa.Connection) -> Removed:
        """Return the removed jobs, and the named ones that have not ended."""
        wanted: sa.ColumnElement[bool] = JOBS.c.ended_s.is_not(None)
        if self.job_ids is not None:
            wanted = JOBS.c.job_id.in_(self.job_ids[:PORTION])
        if self.tenant:
            wanted &= JOBS.c.tenant == self.tenant
        columns = (JOBS.c.job_id, JOBS.c.tenant, JOBS.c.ended_s)
        rows = connection.execute(sa.select(*columns).where(wanted).order_by(JOBS.c.order).limit(PORTION)).all()
        ended = [row for row in rows if row.ended_s is not None]
        files = _shown_by(connection, ended)
        _doom(connection, files)
        delete_jobs(connection, JOBS.c.job_id.in_([row.job_id for row in ended]))
        more = len(rows) == PORTION if self.job_ids is None else len(self.job_ids) > PORTION
        left = tuple(row.job_id for row in rows if row.ended_s is None)
        return Removed(tuple(row.job_id for row in ended), left, tuple(files), more)


@dataclass(frozen=True, slots=True)
class Doomed(ServerScoped):
    """Lists files that are to be deleted, at most PORTION of them."""

    writes: ClassVar[bool] = False

    def execute(self, connection: sa.Connection) -> tuple[StoredPath, ...]:
        """Return their stored paths."""
        rows = connection.execute(sa.select(DOOMED_FILES.c.area, DOOMED_FILES.c.path).limit(PORTION))
        return tuple((row.area, row.path) for row in rows)


@dataclass(frozen=True, slots=True)
class SettleDoomed(ServerScoped):
    """Takes files off the list, as they are deleted or in use."""

    writes: ClassVar[bool] = True

    files: tuple[StoredPath, ...]

    def execute(self, connection: sa.Connection) -> None:
        """Delete their rows."""
        for area, path in self.files:
            place = (DOOMED_FILES.c.area == area) & (DOOMED_FILES.c.path == path)
            connection.execute(sa.delete(DOOMED_FILES).where(place))


def delete_jobs(connection: sa.Connection, which: sa.ColumnElement[bool]) -> None:
    """Delete jobs with all of their rows, except idempotency keys and pending webhook deliveries.

    which: the rows of the table of jobs.
    """
    gone = sa.select(JOBS.c.job_id).where(which)
    for table in (OUTPUTS, RESERVATIONS, ASSET_USES):
        connection.execute(sa.delete(table).where(table.c.job_id.in_(gone)))
    told = DELIVERIES.c.ended_s.is_not(None) & DELIVERIES.c.job_id.in_(gone)
    connection.execute(sa.delete(DELIVERIES).where(told))
    labelled = sa.select(JOBS.c.order).where(which & (JOBS.c.labels != "{}"))
    connection.execute(sa.delete(LABELS).where(LABELS.c.order.in_(labelled)))
    connection.execute(sa.delete(JOBS).where(which))


def _shown_by(connection: sa.Connection, jobs: Sequence[Any]) -> list[StoredPath]:
    tenants = {job.job_id: job.tenant for job in jobs}
    found = sa.select(OUTPUTS.c.job_id, OUTPUTS.c.ui).where(OUTPUTS.c.job_id.in_(list(tenants)))
    files = {
        place
        for job_id, ui in connection.execute(found)
        for place in places(shown(json.loads(ui)), tenants[job_id])
        if place[0] in DELETED_AREAS
    }
    return sorted(files)


def _doom(connection: sa.Connection, files: Sequence[StoredPath]) -> None:
    rows: list[Values] = [{"area": area, "path": path} for area, path in files]
    insert_once(connection, DOOMED_FILES, ("area", "path"), rows)
