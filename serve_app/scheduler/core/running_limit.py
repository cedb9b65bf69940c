"""Which jobs of a tenant may start where its quota says how many may run at once: the first of them, in their order.

As many are let in as may run; the others wait until one of those has ended. One that comes before a job that is let in
and has not started takes its place. Pure.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from serve_app.scheduler.core.records import JobRecord, Priority


class RunningLimit:
    """One a machine. limit: how many jobs of a tenant may run; None for any number."""

    def __init__(self, limit: Callable[[str], int | None]) -> None:
        self._limit = limit
        self._let_in: dict[str, dict[str, JobRecord]] = {}
        # Entries stay whose job has ended or been let in since.
        self._waiting: dict[str, dict[str, JobRecord]] = {}
        self._order: dict[str, list[tuple[Priority, str]]] = {}

    def blocks(self, job: JobRecord) -> bool:
        """Whether a job must wait for another of its tenant."""
        return job.row.job_id in self._waiting.get(job.tenant, ())

    def enter(self, job: JobRecord) -> JobRecord | None:
        """Take in a job that has come; return one that is let in no longer, because of it."""
        limit = self._limit(job.tenant)
        if limit is None:
            return None
        let_in = self._let_in.setdefault(job.tenant, {})
        # What an earlier scheduler has started goes on.
        if len(let_in) < limit or job.started_s is not None:
            let_in[job.row.job_id] = job
            return None
        last = max((j for j in let_in.values() if j.started_s is None), key=lambda j: j.priority, default=None)
        if last is None or last.priority < job.priority:
            self._wait(job)
            return None
        del let_in[last.row.job_id]
        let_in[job.row.job_id] = job
        self._wait(last)
        return last

    def leave(self, job: JobRecord) -> JobRecord | None:
        """Take in that a job has ended; return one that is let in, because of that."""
        tenant, job_id = job.tenant, job.row.job_id
        self._waiting.get(tenant, {}).pop(job_id, None)
        let_in = self._let_in.get(tenant, {})
        let_in.pop(job_id, None)
        limit, order = self._limit(tenant), self._order.get(tenant, [])
        while order and (limit is None or len(let_in) < limit):
            _, next_id = heapq.heappop(order)
            if (following := self._waiting[tenant].pop(next_id, None)) is not None:
                let_in[next_id] = following
                return following
        if not let_in and not order:
            for kept in (self._let_in, self._waiting, self._order):
                kept.pop(tenant, None)
        return None

    def _wait(self, job: JobRecord) -> None:
        self._waiting.setdefault(job.tenant, {})[job.row.job_id] = job
        heapq.heappush(self._order.setdefault(job.tenant, []), (job.priority, job.row.job_id))
