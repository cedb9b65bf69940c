"""How long a job may run, counted from its start, also across restarts of the scheduler. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_app.scheduler.records import JobRecord


def overtime(job: JobRecord, configured_s: float | None, now_s: float) -> Mapping[str, Any] | None:
    """Return the failure of a job that has run for longer than it may, else None.

    The lower one counts of what is configured and what the submission asks for as job_time_s in its extra_data.
    """
    limits = [] if configured_s is None else [(configured_s, "job_time_s of the configuration")]
    asked_s = job.row.extra_data.get("job_time_s")
    if isinstance(asked_s, int | float):
        limits.append((float(asked_s), "job_time_s of its extra_data"))
    if job.started_s is None or not limits:
        return None
    limit_s, source = min(limits)
    if now_s - job.started_s <= limit_s:
        return None
    nodes = sorted(set(job.executing.values()))
    classes = {
        node_id: job.plan.graph.nodes[node_id].class_type for node_id in nodes if node_id in job.plan.graph.nodes
    }
    running = ", ".join(f"node {node_id} ({classes.get(node_id, 'made by a node')})" for node_id in nodes) or "no node"
    first = nodes[0] if nodes else ""
    return {
        "node": first,
        "class_type": classes.get(first, ""),
        "exception_type": "JobTimeError",
        "message": f"the job ran for longer than {limit_s:g} s, the {source}; {running} ran",
        "traceback": [],
        "executed": sorted(job.finished),
        "current_outputs": sorted(job.cached),
    }
