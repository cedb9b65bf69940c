"""How long a job may run, counted from its start, also across restarts of the scheduler. Pure.

It is counted by a steady clock: the wall clock may be set while jobs run.
"""

from __future__ import annotations

from collections.abc import Mapping

from serve_app.events import Failure
from serve_app.scheduler.failures import failure_of
from serve_app.scheduler.records import JobRecord


class Overtime:
    """Which jobs have run for longer than they may. configured_s: the limit of all jobs, if there is one."""

    def __init__(self, configured_s: float | None) -> None:
        self._configured_s = configured_s
        self._since_s: dict[str, float] = {}

    def failures(self, jobs: Mapping[str, JobRecord], wall_s: float, steady_s: float) -> list[tuple[str, Failure]]:
        """Return (job id, failure) of each; to be asked often. wall_s: Unix time. steady_s: by a clock nobody sets.

        Only what a job had run when it was first seen here counts by the wall clock.
        """
        started = [(job_id, job.started_s) for job_id, job in jobs.items() if job.started_s is not None]
        self._since_s = {
            job_id: self._since_s.get(job_id, steady_s - max(0.0, wall_s - started_s)) for job_id, started_s in started
        }
        found = (
            (job_id, overtime(jobs[job_id], self._configured_s, steady_s - since_s))
            for job_id, since_s in self._since_s.items()
        )
        return [(job_id, failure) for job_id, failure in found if failure is not None]


def overtime(job: JobRecord, configured_s: float | None, ran_s: float) -> Failure | None:
    """Return the failure of a job that has run for longer than it may, else None.

    The lower one counts of what is configured and what the submission asks for as job_time_s in its extra_data.
    """
    limits = [] if configured_s is None else [(configured_s, "job_time_s of the configuration")]
    asked_s = job.row.extra_data.get("job_time_s")
    if isinstance(asked_s, int | float):
        limits.append((float(asked_s), "job_time_s of its extra_data"))
    if not limits:
        return None
    limit_s, source = min(limits)
    if ran_s <= limit_s:
        return None
    nodes = sorted(set(job.executing.values()))
    classes = {
        node_id: job.plan.graph.nodes[node_id].class_type for node_id in nodes if node_id in job.plan.graph.nodes
    }
    running = ", ".join(f"node {node_id} ({classes.get(node_id, 'made by a node')})" for node_id in nodes) or "no node"
    message = f"the job ran for longer than {limit_s:g} s, the {source}; {running} ran"
    return failure_of(job, nodes[0] if nodes else "", "JobTimeError", message)
