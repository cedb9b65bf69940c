"""Finds the jobs and files of each tenant that exceed the retention bounds.

`scheduler/housekeeping/expiry.py` deletes them in portions: jobs that ended first, files that were changed first.
Kinds without a bound are not read.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import sqlalchemy as sa

from serve_app.store.database.idempotency_keys import KEY_S
from serve_app.store.database.query_scope import ServerScoped
from serve_app.store.database.schema import IDEMPOTENCY_KEYS, JOBS, OUTPUTS, RESERVATIONS
from serve_app.store.files.atomic_write import UNFINISHED
from serve_app.store.files.store import Area, WholeStore
from serve_app.store.page.assets import FOLDER
from serve_app.store.retention.named_files import StoredPath, ref_of, tenant_of
from serve_app.store.retention.removal import PORTION, delete_jobs
from serve_app.store.retention.rules import FileKind, RetentionBounds, RetentionRules
from serve_app.store.retention.sweep import PREVIEW, SETTLED_S

LYING: Mapping[Area, tuple[FileKind, ...]] = {
    "output": ("outputs",),
    "input": ("uploads",),
    "temp": ("previews", "temp"),
}
"""What lies in each area."""


# History --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EndedTenants(ServerScoped):
    """Lists the tenants that have ended jobs."""

    writes: ClassVar[bool] = False

    def execute(self, connection: sa.Connection) -> tuple[str, ...]:
        """Return the tenants, the operator first."""
        named = (
            sa.select(JOBS.c.tenant).distinct().where((JOBS.c.tenant != sa.text("''")) & JOBS.c.ended_s.is_not(None))
        )
        return ("", *connection.execute(named).scalars())


@dataclass(frozen=True, slots=True)
class HistoryCut(ServerScoped):
    """Finds the cursor up to which a tenant's history exceeds its bounds. now_s: Unix time."""

    writes: ClassVar[bool] = False

    tenant: str
    bounds: RetentionBounds
    now_s: float

    def execute(self, connection: sa.Connection) -> int | None:
        """Return the cursor of the last end that exceeds them, or None."""
        theirs = (JOBS.c.tenant == self.tenant) & JOBS.c.ended_seq.is_not(None)
        cuts: list[int | None] = []
        if self.bounds.age_s is not None:
            old = theirs & (JOBS.c.ended_s < self.now_s - self.bounds.age_s)
            cuts.append(connection.execute(sa.select(sa.func.max(JOBS.c.ended_seq)).where(old)).scalar())
        if self.bounds.count is not None:
            newest = sa.select(JOBS.c.ended_seq).where(theirs).order_by(JOBS.c.ended_seq.desc())
            cuts.append(connection.execute(newest.offset(self.bounds.count).limit(1)).scalar())
        if self.bounds.bytes is not None:
            cuts.append(self._by_bytes(connection, theirs, self.bounds.bytes))
        return max((cut for cut in cuts if cut is not None), default=None)

    def _by_bytes(self, connection: sa.Connection, theirs: sa.ColumnElement[bool], left: int) -> int | None:
        """Return the first end, from the newest on, at which the total size of the texts exceeds the bound."""
        below: int | None = None
        while True:
            texts = (JOBS.c.prompt, JOBS.c.extra_data, JOBS.c.failure)
            size = sum((sa.func.length(text) for text in texts), sa.literal(0))
            shown = sa.select(sa.func.coalesce(sa.func.sum(sa.func.length(OUTPUTS.c.ui)), 0))
            shown = shown.where(OUTPUTS.c.job_id == JOBS.c.job_id)
            page = sa.select(JOBS.c.ended_seq, size + shown.scalar_subquery()).where(theirs)
            if below is not None:
                page = page.where(JOBS.c.ended_seq < below)
            rows = connection.execute(page.order_by(JOBS.c.ended_seq.desc()).limit(PORTION)).all()
            for ended_seq, size_of_job in rows:
                left -= int(size_of_job)
                if left < 0:
                    return int(ended_seq)
                below = int(ended_seq)
            if len(rows) < PORTION:
                return None


@dataclass(frozen=True, slots=True)
class ExpireJobs(ServerScoped):
    """Deletes a tenant's jobs that ended up to a cursor, at most PORTION of them; their files stay.

    A job stays while its idempotency key is valid, or while it may have unrecorded files.
    """

    writes: ClassVar[bool] = True

    tenant: str
    until_seq: int
    now_s: float

    def execute(self, connection: sa.Connection) -> tuple[str, ...]:
        """Return their ids."""
        keyed = sa.select(IDEMPOTENCY_KEYS.c.holder).where(IDEMPOTENCY_KEYS.c.claimed_s > self.now_s - KEY_S)
        over = (JOBS.c.ended_seq <= self.until_seq) & (JOBS.c.tenant == self.tenant)
        over &= JOBS.c.job_id.not_in(keyed) & JOBS.c.job_id.not_in(sa.select(RESERVATIONS.c.job_id))
        found = sa.select(JOBS.c.job_id).where(over).order_by(JOBS.c.ended_seq).limit(PORTION)
        job_ids = tuple(connection.execute(found).scalars())
        delete_jobs(connection, JOBS.c.job_id.in_(job_ids))
        return job_ids


# Files ----------------------------------------------------------------------------------------------------------------


class _Kept(NamedTuple):
    modified_s: float
    path: str
    size: int


class _Newest:
    """Keeps the newest files of a kind that fit its bounds, one by one."""

    def __init__(self, bounds: RetentionBounds, now_s: float) -> None:
        self._bounds, self._now_s = bounds, now_s
        self._kept: list[_Kept] = []
        self._bytes = 0

    def offer(self, file: _Kept) -> Iterator[str]:
        """Add a file; yield the paths of those that no longer fit."""
        bounds = self._bounds
        if bounds.age_s is not None and file.modified_s < self._now_s - bounds.age_s:
            yield file.path
            return
        if bounds.count is None and bounds.bytes is None:
            return
        heapq.heappush(self._kept, file)
        self._bytes += file.size
        while self._kept and (
            (bounds.count is not None and len(self._kept) > bounds.count)
            or (bounds.bytes is not None and self._bytes > bounds.bytes)
        ):
            oldest = heapq.heappop(self._kept)
            self._bytes -= oldest.size
            yield oldest.path


def files_beyond(store: WholeStore, area: Area, rules: RetentionRules) -> Iterator[tuple[StoredPath, ...]]:
    """Yield the files of an area that exceed their bounds, in portions. Files just written are skipped.

    With a bound on count or bytes, memory grows with the number of kept files.
    """
    now_s = time.time()
    newest: dict[tuple[FileKind, str], _Newest] = {}
    portion: list[StoredPath] = []
    for ref, size, modified_s in store.inventory(area):
        place: StoredPath = (area, f"{ref.subfolder}/{ref.filename}" if ref.subfolder else ref.filename)
        kind, tenant = _kind(place), tenant_of(place)
        if kind is None or not rules.bounds(kind, tenant).bound or modified_s > now_s - SETTLED_S:
            continue
        if (kind, tenant) not in newest:
            newest[kind, tenant] = _Newest(rules.bounds(kind, tenant), now_s)
        portion += [(area, path) for path in newest[kind, tenant].offer(_Kept(modified_s, place[1], size))]
        if len(portion) >= PORTION:
            yield tuple(portion)
            portion = []
    if portion:
        yield tuple(portion)


def _kind(place: StoredPath) -> FileKind | None:
    """Return the kind of a file; None if other rules remove it."""
    ref = ref_of(place)
    if ref.filename.endswith(UNFINISHED):
        return None
    if place[0] == "input":
        own = ref.subfolder.removeprefix(f"@{tenant_of(place)}/") if tenant_of(place) else ref.subfolder
        return None if own == FOLDER else "uploads"
    if place[0] == "temp":
        return "previews" if PREVIEW.search(ref.filename) else "temp"
    return "outputs"
