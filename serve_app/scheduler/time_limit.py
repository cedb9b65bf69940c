"""How long a job may run, counted from its start, also across restarts of the scheduler. Pure.

It is counted by a steady clock: the wall clock may be set while jobs run.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappop, heappush
from typing import NamedTuple

from serve_app.events import Failure
from serve_app.scheduler.failures import failure_of
from serve_app.scheduler.records import JobRecord

FEW = 64
"""Jobs that have ended and are remembered in any case."""


class _Due(NamedTuple):
    at_s: float
    order: int
    job_id: str


class Overtime:
    """Which jobs have run for longer than they may. configured_s: the limit of all jobs, if there is one.

    Only jobs whose time is up are looked at. Of those that have ended before, as many are remembered as run.
    """

    def __init__(self, configured_s: float | None) -> None:
        self._configured_s = configured_s
        self._running: dict[str, _Due] = {}
        self._dues: list[_Due] = []

    def started(self, job: JobRecord, wall_s: float, steady_s: float) -> None:
        """Count a job's time from its start on. wall_s: Unix time. steady_s: by a clock nobody sets.

        Only what it had run before this counts by the wall clock.
        """
        if (limit := limit_of(job, self._configured_s)) is not None and job.started_s is not None:
            since_s = steady_s - max(0.0, wall_s - job.started_s)
            self._running[job.row.job_id] = due = _Due(since_s + limit[0], job.row.order, job.row.job_id)
            heappush(self._dues, due)

    def ended(self, job_id: str) -> None:
        """Count a job's time no longer."""
        if self._running.pop(job_id, None) is not None and len(self._dues) > 2 * len(self._running) + FEW:
            self._dues = sorted(self._running.values())

    def failures(self, jobs: Mapping[str, JobRecord], steady_s: float) -> list[tuple[str, Failure]]:
        """Return (job id, failure) of each whose time is up, once."""
        found: list[tuple[str, Failure]] = []
        while self._dues and self._dues[0].at_s < steady_s:
            due = heappop(self._dues)
            if self._running.get(due.job_id) == due:
                del self._running[due.job_id]
                if (job := jobs.get(due.job_id)) is not None:
                    found.append((due.job_id, failure(job, self._configured_s)))
        return found


def limit_of(job: JobRecord, configured_s: float | None) -> tuple[float, str] | None:
    """Return how long a job may run and where that is set; None for as long as it likes.

    The lower one counts of what is configured and what the submission asks for as job_time_s in its extra_data.
    """
    limits = [] if configured_s is None else [(configured_s, "job_time_s of the configuration")]
    asked_s = job.row.extra_data.get("job_time_s")
    if isinstance(asked_s, int | float):
        limits.append((float(asked_s), "job_time_s of its extra_data"))
    return min(limits, default=None)


def failure(job: JobRecord, configured_s: float | None) -> Failure:
    """Return the failure of a job that has run for longer than it may."""
    limit_s, source = limit_of(job, configured_s) or (0.0, "job_time_s")
    nodes = sorted(set(job.executing.values()))
    classes = {
        node_id: job.plan.graph.nodes[node_id].class_type for node_id in nodes if node_id in job.plan.graph.nodes
    }
    running = ", ".join(f"node {node_id} ({classes.get(node_id, 'made by a node')})" for node_id in nodes) or "no node"
    message = f"the job ran for longer than {limit_s:g} s, the {source}; {running} ran"
    return failure_of(job, nodes[0] if nodes else "", "JobTimeError", message)
