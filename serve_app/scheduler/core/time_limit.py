"""How long a job may run, counted from its start, and by when it must have ended, counted from its submission. Pure.

Both also across restarts of the scheduler. They are counted by a steady clock: the wall clock may be set meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappop, heappush
from typing import Literal, NamedTuple, TypeAlias

from serve_app.events import Failure
from serve_app.scheduler.core.failures import failure_of
from serve_app.scheduler.core.records import JobRecord

FEW = 64
"""Jobs that have ended and are remembered in any case."""

Kind: TypeAlias = Literal["job_time_s", "deadline_s"]
"""What bounds a job, as the configuration and its extra_data call it."""
KINDS: tuple[Kind, ...] = ("job_time_s", "deadline_s")
LONGEST_DEADLINE_S = 366 * 86_400.0
"""What is more than that is no time from the submission on, but a moment of some calendar."""


class _Due(NamedTuple):
    at_s: float
    order: int
    job_id: str
    kind: Kind


class Overtime:
    """Which jobs have run for longer than they may, or have not ended in time. configured: the limits of all jobs.

    Only jobs whose time is up are looked at. Of those that have ended before, as many are remembered as there are.
    """

    def __init__(self, configured: Mapping[Kind, float | None]) -> None:
        self._configured = configured
        self._bounded: dict[tuple[str, Kind], _Due] = {}
        self._dues: list[_Due] = []

    def arrived(self, job: JobRecord, wall_s: float, steady_s: float) -> None:
        """Count a job's time from its submission on. wall_s: Unix time. steady_s: by a clock nobody sets.

        Only what has passed before this counts by the wall clock.
        """
        self._count(job, "deadline_s", job.row.created_s, wall_s, steady_s)

    def started(self, job: JobRecord, wall_s: float, steady_s: float) -> None:
        """Count a job's time from its start on; as `arrived`."""
        if job.started_s is not None:
            self._count(job, "job_time_s", job.started_s, wall_s, steady_s)

    def _count(self, job: JobRecord, kind: Kind, since_s: float, wall_s: float, steady_s: float) -> None:
        if (limit := limit_of(job, kind, self._configured)) is not None:
            at_s = steady_s - max(0.0, wall_s - since_s) + limit[0]
            self._bounded[job.row.job_id, kind] = due = _Due(at_s, job.row.order, job.row.job_id, kind)
            heappush(self._dues, due)

    def ended(self, job_id: str) -> None:
        """Count a job's time no longer."""
        known = [self._bounded.pop((job_id, kind), None) for kind in KINDS]
        if any(known) and len(self._dues) > 2 * len(self._bounded) + FEW:
            self._dues = sorted(self._bounded.values())

    def failures(self, jobs: Mapping[str, JobRecord], steady_s: float) -> list[tuple[str, Failure]]:
        """Return (job id, failure) of each whose time is up, once."""
        found: dict[str, Failure] = {}
        while self._dues and self._dues[0].at_s < steady_s:
            due = heappop(self._dues)
            if self._bounded.get((due.job_id, due.kind)) == due:
                del self._bounded[due.job_id, due.kind]
                if (job := jobs.get(due.job_id)) is not None and due.job_id not in found:
                    found[due.job_id] = failure(job, due.kind, self._configured)
        return list(found.items())


def limit_of(job: JobRecord, kind: Kind, configured: Mapping[Kind, float | None]) -> tuple[float, str] | None:
    """Return how long a job may take and where that is set; None for as long as it likes.

    The lower one counts of what is configured and what the submission asks for in its extra_data.
    """
    configured_s = configured.get(kind)
    limits = [] if configured_s is None else [(configured_s, f"{kind} of the configuration")]
    asked_s = job.row.extra_data.get(kind)
    if isinstance(asked_s, int | float):
        limits.append((float(asked_s), f"{kind} of its extra_data"))
    return min(limits, default=None)


def failure(job: JobRecord, kind: Kind, configured: Mapping[Kind, float | None]) -> Failure:
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
