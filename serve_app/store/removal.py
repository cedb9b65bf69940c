"""Removing ended jobs together with their files, so that a process which ends halfway leaves nothing behind.

The transaction that takes jobs out of the tables writes down their files, and whoever deletes those takes them off the
list after that. What another job shows, or an asset refers to, only leaves the list.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import sqlalchemy as sa

from serve_app.errors import FileMissingError
from serve_app.store.insert_once import insert_once
from serve_app.store.reserved import shown
from serve_app.store.schema import ASSET_USES, ASSETS, DOOMED_FILES, JOBS, LABELS, OUTPUTS, RESERVATIONS
from serve_app.store.store import FileRef

PORTION = 200
"""How many jobs, or files, one transaction concerns."""
DELETED_AREAS = ("output", "temp")
"""Whose files are jobs' own: what a node shows of the input area, its client has put there."""


class Removed(NamedTuple):
    """ended: jobs that are gone. unfinished: jobs that are there and have not ended. more: whether some are left.

    files: what those that are gone have shown.
    """

    ended: tuple[str, ...]
    unfinished: tuple[str, ...]
    files: tuple[FileRef, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class RemoveJobs:
    """Take ended jobs out, these or all, at most PORTION of them. tenant: whose; "" for anyone's."""

    writes: ClassVar[bool] = True

    job_ids: tuple[str, ...] | None
    tenant: str = ""

    def carry_out(self, connection: sa.Connection) -> Removed:
        """Return which, and which of those that were named have not ended."""
        wanted: sa.ColumnElement[bool] = JOBS.c.ended_s.is_not(None) if self.job_ids is None else sa.true()
        if self.job_ids is not None:
            wanted = JOBS.c.job_id.in_(self.job_ids[:PORTION])
        if self.tenant:
            wanted &= JOBS.c.tenant == self.tenant
        columns = (JOBS.c.job_id, JOBS.c.order, JOBS.c.tenant, JOBS.c.ended_s)
        rows = connection.execute(sa.select(*columns).where(wanted).order_by(JOBS.c.order).limit(PORTION)).all()
        ended = [row for row in rows if row.ended_s is not None]
        files = _shown_by(connection, ended)
        _doom(connection, files)
        delete_jobs(connection, [row.job_id for row in ended], [row.order for row in ended])
        more = len(rows) == PORTION if self.job_ids is None else len(self.job_ids) > PORTION
        left = tuple(row.job_id for row in rows if row.ended_s is None)
        return Removed(tuple(row.job_id for row in ended), left, tuple(files), more)


@dataclass(frozen=True, slots=True)
class Doomed:
    """Files that are to be deleted, at most PORTION of them: what is spared of them, and the others."""

    writes: ClassVar[bool] = False

    def carry_out(self, connection: sa.Connection) -> tuple[tuple[FileRef, ...], tuple[FileRef, ...]]:
        """Return them. Spared is what an asset refers to that a client has made of another's bytes."""
        rows = connection.execute(sa.select(DOOMED_FILES.c.area, DOOMED_FILES.c.path).limit(PORTION)).all()
        kept = sa.select(ASSETS.c.area, ASSETS.c.path).where(ASSETS.c.job_id.is_(None))
        kept = kept.where(ASSETS.c.path.in_([row.path for row in rows]))
        spared = {(row.area, row.path) for row in connection.execute(kept)}
        refs = {(row.area, row.path): _ref(row.area, row.path) for row in rows}
        others = tuple(ref for place, ref in refs.items() if place not in spared)
        return tuple(ref for place, ref in refs.items() if place in spared), others


@dataclass(frozen=True, slots=True)
class SettleDoomed:
    """Take files off the list: they are gone, or another has them."""

    writes: ClassVar[bool] = True

    files: tuple[FileRef, ...]

    def carry_out(self, connection: sa.Connection) -> None:
        """Delete their rows."""
        for ref in self.files:
            place = (DOOMED_FILES.c.area == ref.area) & (DOOMED_FILES.c.path == ref.path)
            connection.execute(sa.delete(DOOMED_FILES).where(place))


def delete_jobs(connection: sa.Connection, job_ids: Sequence[str], orders: Sequence[int]) -> None:
    """Delete jobs with all that belongs to them in the tables, but for their keys. orders: theirs."""
    for table in (OUTPUTS, RESERVATIONS, ASSET_USES, JOBS):
        connection.execute(sa.delete(table).where(table.c.job_id.in_(job_ids)))
    connection.execute(sa.delete(LABELS).where(LABELS.c.order.in_(orders)))


def _shown_by(connection: sa.Connection, jobs: Sequence[Any]) -> list[FileRef]:
    found = sa.select(OUTPUTS.c.ui).where(OUTPUTS.c.job_id.in_([job.job_id for job in jobs]))
    refs = {ref for ui in connection.execute(found).scalars() for ref in shown(json.loads(ui)) if _is_own(ref)}
    return sorted(refs, key=lambda ref: (ref.area, ref.path))


def _is_own(ref: FileRef) -> bool:
    """Whether a job's node may have saved it: what a node of a pack shows need be no file's name at all."""
    with contextlib.suppress(FileMissingError):
        return ref.area in DELETED_AREAS and bool(ref.path)
    return False


def _doom(connection: sa.Connection, files: Sequence[FileRef]) -> None:
    insert_once(connection, DOOMED_FILES, ("area", "path"), [{"area": ref.area, "path": ref.path} for ref in files])


def _ref(area: Any, path: str) -> FileRef:
    subfolder, _, filename = path.rpartition("/")
    return FileRef(area, subfolder, filename)
