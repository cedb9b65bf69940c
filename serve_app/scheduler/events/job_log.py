"""Logs the ends of jobs, and traces how long they have waited and taken."""

from __future__ import annotations

from serve_app import log, tracing
from serve_app.events import Event
from serve_app.scheduler.core.records import JobRecord
from serve_app.scheduler.protocol.request_ids import request_id_of
from serve_app.tracing import TRACEPARENT

_log = log.get("scheduler")


def note(event: Event, job: JobRecord | None) -> None:
    """Note an event of a job, if it is one to note. job: as it is before the event, if it is known."""
    if event.last:
        _log_end(event, job)
    if job is not None and (event.kind == "started" or event.last):
        name = "job" if event.last else "wait"
        parent, about = job.row.extra_data.get(TRACEPARENT), {"job": event.job_id, "state": event.kind}
        tracing.record(name, job.row.created_s, event.at_s, parent, **about)


def _log_end(event: Event, job: JobRecord | None) -> None:
    """Log a job's end, with its request, its tenant, how long it waited and how long it ran, as far as known."""
    known: dict[str, str] = {}
    if job is not None:
        started_s = event.at_s if job.started_s is None else job.started_s
        known = {"waited_s": f"{started_s - job.row.created_s:.3f}", "ran_s": f"{event.at_s - started_s:.3f}"}
        known |= {"tenant": job.tenant} if job.tenant else {}
        known |= request_id_of(job.row.extra_data)
    with log.about(job=event.job_id, **known):
        _log.info("ended: state=%s", event.kind)
