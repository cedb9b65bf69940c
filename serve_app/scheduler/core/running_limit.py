"""Enforces a tenant's quota of running jobs: the first ones in order are admitted, the others wait. Pure.

When an admitted job ends, the next one is admitted. A new job takes the place of an admitted job that comes after it in
order and has not started.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from serve_app.scheduler.core.records import JobRecord, Priority


class RunningLimit:
    """The admitted and waiting jobs of every tenant with a limit. limit: of a tenant, None for no limit."""

    def __init__(self, limit: Callable[[str], int | None]) -> None:
        self._limit = limit
        self.admitted: dict[str, dict[str, JobRecord]] = {}
        # Entries of jobs that have ended or been admitted since stay.
        self._waiting: dict[str, dict[str, JobRecord]] = {}
        self._order: dict[str, list[tuple[Priority, str]]] = {}

    def blocks(self, job: JobRecord) -> bool:
        """Whether a job must wait for another job of its tenant."""
        return job.row.job_id in self._waiting.get(job.tenant, ())

    def enter(self, job: JobRecord) -> JobRecord | None:
        """Add a new job; return the job that loses its place to it, if any."""
        limit = self._limit(job.tenant)
        if limit is None:
            return None
        admitted = self.admitted.setdefault(job.tenant, {})
        # A job that started in an earlier epoch goes on.
        if len(admitted) < limit or job.started_s is not None:
            admitted[job.row.job_id] = job
            return None
        last = max((j for j in admitted.values() if j.started_s is None), key=lambda j: j.priority, default=None)
        if last is None or last.priority < job.priority:
            self._wait(job)
            return None
        del admitted[last.row.job_id]
        admitted[job.row.job_id] = job
        self._wait(last)
        return last

    def leave(self, job: JobRecord) -> JobRecord | None:
        """Remove a job that has ended; return the job that is admitted in its place, if any."""
        tenant, job_id = job.tenant, job.row.job_id
        self._waiting.get(tenant, {}).pop(job_id, None)
        admitted = self.admitted.get(tenant, {})
        admitted.pop(job_id, None)
        limit, order = self._limit(tenant), self._order.get(tenant, [])
        while order and (limit is None or len(admitted) < limit):
            _, next_id = heapq.heappop(order)
            if (following := self._waiting[tenant].pop(next_id, None)) is not None:
                admitted[next_id] = following
                return following
        if not admitted and not order:
            for kept in (self.admitted, self._waiting, self._order):
                kept.pop(tenant, None)
        return None

    def _wait(self, job: JobRecord) -> None:
        self._waiting.setdefault(job.tenant, {})[job.row.job_id] = job
        heapq.heappush(self._order.setdefault(job.tenant, []), (job.priority, job.row.job_id))
