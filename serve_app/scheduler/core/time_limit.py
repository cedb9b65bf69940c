"""Time limits of jobs: `job_time_s` from the start, `deadline_s` from the submission. Pure.

Both hold across restarts of the scheduler, and use a steady clock, since the wall clock may be set.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappop, heappush
from typing import Literal, NamedTuple, TypeAlias

from serve_app.events import Failure
from serve_app.scheduler.core.failures import failure_of
from serve_app.scheduler.core.records import JobRecord

FEW = 64
"""Ended jobs that stay in the heap in any case."""

TimeLimitKind: TypeAlias = Literal["job_time_s", "deadline_s"]
"""A limit, by its key in the configuration and in extra_data."""
KINDS: tuple[TimeLimitKind, ...] = ("job_time_s", "deadline_s")
LONGEST_DEADLINE_S = 366 * 86_400.0
"""A larger deadline is no duration but a mistaken timestamp."""


class _Due(NamedTuple):
    at_s: float
    order: int
    job_id: str
    kind: TimeLimitKind


class JobTimeLimits:
    """Finds jobs that exceed a time limit. configured: the limits of all jobs.

    A heap by due time, so that only due jobs are visited. It is rebuilt once half of it is of ended jobs.
    """

    def __init__(self, configured: Mapping[TimeLimitKind, float | None]) -> None:
        self._configured = configured
        self._bounded: dict[tuple[str, TimeLimitKind], _Due] = {}
        self.dues: list[_Due] = []

    def arrived(self, job: JobRecord, wall_s: float, steady_s: float) -> None:
        """Start a job's deadline. wall_s: Unix time. steady_s: of a monotonic clock.

        Only the time before this call is taken from the wall clock.
        """
        self._count(job, "deadline_s", job.row.created_s, wall_s, steady_s)

    def started(self, job: JobRecord, wall_s: float, steady_s: float) -> None:
        """Start a job's time limit; arguments as for `arrived`."""
        if job.started_s is not None:
            self._count(job, "job_time_s", job.started_s, wall_s, steady_s)

    def _count(self, job: JobRecord, kind: TimeLimitKind, since_s: float, wall_s: float, steady_s: float) -> None:
        if (limit := limit_of(job, kind, self._configured)) is not None:
            at_s = steady_s - max(0.0, wall_s - since_s) + limit[0]
            self._bounded[job.row.job_id, kind] = due = _Due(at_s, job.row.order, job.row.job_id, kind)
            heappush(self.dues, due)

    def ended(self, job_id: str) -> None:
        """Stop both limits of a job."""
        known = [self._bounded.pop((job_id, kind), None) for kind in KINDS]
        if any(known) and len(self.dues) > 2 * len(self._bounded) + FEW:
            self.dues = sorted(self._bounded.values())

    def failures(self, jobs: Mapping[str, JobRecord], steady_s: float) -> list[tuple[str, Failure]]:
        """Return (job id, failure) of each job whose time is up, once."""
        found: dict[str, Failure] = {}
        while self.dues and self.dues[0].at_s < steady_s:
            due = heappop(self.dues)
            if self._bounded.get((due.job_id, due.kind)) == due:
                del self._bounded[due.job_id, due.kind]
                if (job := jobs.get(due.job_id)) is not None and due.job_id not in found:
                    found[due.job_id] = failure(job, due.kind, self._configured)
        return list(found.items())


def limit_of(
    job: JobRecord, kind: TimeLimitKind, configured: Mapping[TimeLimitKind, float | None]
) -> tuple[float, str] | None:
    """Return a job's limit in seconds and where it is set, None for no limit.

    The lower one of the configuration and the submission's extra_data counts.
    """
    configured_s = configured.get(kind)
    limits = [] if configured_s is None else [(configured_s, f"{kind} of the configuration")]
    asked_s = job.row.extra_data.get(kind)
    if isinstance(asked_s, int | float):
        limits.append((float(asked_s), f"{kind} of its extra_data"))
    return min(limits, default=None)


def failure(job: JobRecord, kind: TimeLimitKind, configured: Mapping[TimeLimitKind, float | None]) -> Failure:
    """Return the failure of a job whose time is up."""
    limit_s, source = limit_of(job, kind, configured) or (0.0, kind)
    nodes = sorted(set(job.executing.values()))
    classes = {
        node_id: job.plan.graph.nodes[node_id].class_type for node_id in nodes if node_id in job.plan.graph.nodes
    }
    running = ", ".join(f"node {node_id} ({classes.get(node_id, 'made by a node')})" for node_id in nodes)
    where = f"{running} ran" if running else "it had not started" if job.started_s is None else "no node ran"
    took, name = f"ran for longer than {limit_s:g} s", "JobTimeError"
    if kind == "deadline_s":
        took, name = f"had not ended {limit_s:g} s after its submission", "DeadlineError"
    return failure_of(job, nodes[0] if nodes else "", name, f"the job {took}, the {source}; {where}")
