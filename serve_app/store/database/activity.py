"""What a server has done lately: ended jobs by time, and each tenant's use by day."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import sqlalchemy as sa

from serve_app.store.database.query_scope import ServerScoped
from serve_app.store.database.schema import JOBS, USAGE

DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class ActivitySlot:
    """The jobs that ended within one slot of time, by state. wait_s, run_s: means of those that had started."""

    begins_s: float
    success: int = 0
    error: int = 0
    cancelled: int = 0
    wait_s: float = 0.0
    run_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ReadActivity(ServerScoped):
    """Reads the jobs that have ended since a time, in slots of some seconds; slots without any are left out."""

    writes: ClassVar[bool] = False

    since_s: float
    slot_s: int

    def execute(self, connection: sa.Connection) -> tuple[ActivitySlot, ...]:
        """Return the slots, the oldest first."""
        # Whole numbers are divided without a remainder. SQLite cuts seconds off, PostgreSQL rounds them.
        slot = sa.cast(JOBS.c.ended_s - self.since_s, sa.Integer) // self.slot_s
        started = JOBS.c.started_s.is_not(None)
        counted = (
            sa.select(
                slot.label("slot"),
                JOBS.c.state,
                sa.func.count(),
                sa.func.count(JOBS.c.started_s),
                sa.func.sum(sa.case((started, JOBS.c.started_s - JOBS.c.created_s), else_=0.0)),
                sa.func.sum(sa.case((started, JOBS.c.ended_s - JOBS.c.started_s), else_=0.0)),
            )
            .where(JOBS.c.ended_s >= self.since_s)
            .group_by(slot, JOBS.c.state)
            .order_by(slot)
        )
        found: dict[int, list[tuple[str, int, int, float, float]]] = {}
        for number, *rest in connection.execute(counted):
            found.setdefault(int(number), []).append(tuple(rest))
        return tuple(self._slot(number, rows) for number, rows in found.items())

    def _slot(self, number: int, rows: list[tuple[str, int, int, float, float]]) -> ActivitySlot:
        counts = {state: count for state, count, *_ in rows}
        ran = max(1, sum(started for _, _, started, _, _ in rows))
        return ActivitySlot(
            begins_s=self.since_s + number * self.slot_s,
            success=counts.get("success", 0),
            error=counts.get("error", 0),
            cancelled=counts.get("cancelled", 0),
            wait_s=sum(wait for *_, wait, _ in rows) / ran,
            run_s=sum(run for *_, run in rows) / ran,
        )


@dataclass(frozen=True, slots=True)
class TenantDay:
    """What a tenant has used on one UTC day, counted in days since 1970; tenant "": the operator.

    saved_bytes: of files that its jobs saved, whether or not they have been deleted since.
    """

    day: int
    tenant: str
    jobs: int
    gpu_s: float
    saved_bytes: int


@dataclass(frozen=True, slots=True)
class ReadTenantDays(ServerScoped):
    """Reads ended jobs, GPU-seconds and saved bytes by tenant and UTC day, from a day on. Deleted jobs do not count."""

    writes: ClassVar[bool] = False

    since_day: int

    def execute(self, connection: sa.Connection) -> tuple[TenantDay, ...]:
        """Return the days, the oldest first."""
        day = sa.cast(JOBS.c.ended_s - self.since_day * DAY_S, sa.Integer) // DAY_S
        ended = sa.select(day, JOBS.c.tenant, sa.func.count()).where(JOBS.c.ended_s >= self.since_day * DAY_S)
        jobs = {
            (self.since_day + int(number), tenant): int(count)
            for number, tenant, count in connection.execute(ended.group_by(day, JOBS.c.tenant))
        }
        rows = connection.execute(sa.select(USAGE).where(USAGE.c.day >= self.since_day))
        used = {(int(row.day), row.tenant): (float(row.gpu_s), int(row.saved_bytes)) for row in rows}
        return tuple(
            TenantDay(*key, jobs.get(key, 0), *used.get(key, (0.0, 0))) for key in sorted(jobs.keys() | used.keys())
        )
