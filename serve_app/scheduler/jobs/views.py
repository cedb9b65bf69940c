"""Builds the views of jobs for clients: of unfinished ones from records, of ended ones from rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

from serve_app.events import Event, JobState, data_bytes
from serve_app.scheduler.core.records import JobRecord
from serve_app.scheduler.jobs.unfinished_jobs import UnfinishedJobs
from serve_app.scheduler.protocol.client import JobProgress, JobView, QueueBounds, QueueCount, QueueItem, QueueView
from serve_app.scheduler.protocol.messages import PROGRESS_TEXT
from serve_app.store.database.changes import JobQuery, JobRow, made_from
from serve_app.store.tenants.credentials import without_credentials
from serve_app.store.tenants.pauses import Pause

MEASURED_REPORTS = 32
"""A node's rate is that of so many reports of its progress at most."""


def queue_view(
    jobs: UnfinishedJobs, bounds: QueueBounds, paused: Iterable[Pause] = (), wait_s: float = 0.0
) -> QueueView:
    """Return the beginning of the queue, in time proportional to its size."""
    count = QueueCount(len(jobs.running), len(jobs.waiting))
    running = min(count.running, bounds.items)
    items = _items(islice(chain(jobs.running, jobs.waiting), bounds.items), bounds.bytes)
    return QueueView(tuple(islice(items, running)), tuple(items), count, tuple(paused), wait_s)


def _items(jobs: Iterable[JobRecord], left_bytes: int) -> Iterator[QueueItem]:
    """Yield the queue's items: complete until the bytes are used up."""
    whole = True
    for row in (job.row for job in jobs):
        if whole:
            left_bytes -= data_bytes([row.prompt, row.targets, row.client_id, row.extra_data], left_bytes)
            whole = left_bytes >= 0
        if whole:
            rest = (row.prompt, row.targets, row.client_id, row.extra_data)
            yield QueueItem(row.job_id, row.number, row.created_s, *rest)
        else:
            yield QueueItem(row.job_id, row.number, row.created_s)


def brief(view: JobView) -> JobView:
    """Return a job without its prompt, and with only the saved workflow's id of its extra_data."""
    try:
        saved: Any = {"extra_pnginfo": {"workflow": {"id": view.extra_data["extra_pnginfo"]["workflow"]["id"]}}}
    except (KeyError, TypeError):
        saved = {}
    return replace(view, prompt={}, extra_data=saved)


def unfinished_window(jobs: UnfinishedJobs, query: JobQuery) -> tuple[list[JobRecord], int] | None:
    """Return the jobs that a query for unfinished jobs in order of creation finds; None for another query."""
    states = frozenset(query.states)
    if not states <= {"queued", "running"} or query.sort != "created" or query.workflow_id is not None:
        return None
    listed, total = jobs.within(query.tenant).by_arrival(states, descending=query.descending)
    stop = None if query.limit is None else query.offset + query.limit
    return list(islice(listed, query.offset, stop)), total


def live_view(job: JobRecord) -> JobView:
    """Return the view of an unfinished job."""
    state: JobState
    state, percent = ("queued", 0) if job.started_s is None else ("running", job.percent)
    since = {"state": state, "started_s": job.started_s, "outputs": job.outputs, "cached": job.cached}
    return made_from(JobView, job.row, percent=percent, **since)


def progress_of(
    job: JobRecord, position: int | None, events: Sequence[Event], now_s: float | None = None
) -> JobProgress:
    """Return a job's progress. position: in the queue, from 1. events: its published ones.

    now_s: Unix time; None: of the last report.
    """
    nodes = {node_id for task in job.plan.tasks for node_id in task.nodes}
    done = len(nodes & {*job.finished, *job.cached, *job.outputs})
    node = next(reversed(job.executing.values()), None)
    if node is None:
        return JobProgress(position, job.percent, done, len(nodes))
    said = next((e.data for e in reversed(events) if e.kind in ("progress", "executing")), {})
    # The last event may be of another running node.
    stepping = "max" in said and node in (said.get("node"), said.get("display_node"))
    step, steps = (int(said["value"]), int(said["max"])) if stepping else (None, None)
    about = (e.data for e in reversed(events) if e.kind == "message" and e.data.get("type") == PROGRESS_TEXT)
    text = next((str(data["data"].get("text", "")) for data in about if data["node"] == node), "")
    class_type = job.plan.graph.nodes[node].class_type if node in job.plan.graph.nodes else None
    left_s = remaining_s(_reports(events, said), now_s) if stepping else None
    return JobProgress(position, job.percent, done, len(nodes), node, class_type, step, steps, text, left_s=left_s)


def remaining_s(reports: Iterable[Event], now_s: float | None = None) -> float | None:
    """Return about how many seconds a node's remaining steps take; None before two steps are done.

    reports: its progress, newest first. The rate is that of its last steps; what the first one took is not counted, as
    models are loaded before it. now_s: as `progress_of`.
    """
    measured = [
        (report.at_s, float(report.data["value"]), float(report.data["max"]))
        for report in islice(reports, MEASURED_REPORTS)
    ]
    if not measured:
        return None
    (newest_s, done, steps), *_ = measured
    oldest_s, before = newest_s, done
    for at_s, value, of in measured:
        # More steps than later, or of others: they are of an earlier run.
        if not 1 <= value <= before or of != steps:
            break
        oldest_s, before = at_s, value
    if before == done:
        return None
    each_s = max(0.0, newest_s - oldest_s) / (done - before)
    since_s = 0.0 if now_s is None else max(0.0, now_s - newest_s)
    return round(max(0.0, each_s * (steps - done) - since_s), 1)


def _reports(events: Sequence[Event], newest: Mapping[str, Any]) -> Iterator[Event]:
    """Yield the progress of the node of the newest report, newest first, back to its start."""
    for event in reversed(events):
        if event.data.get("node") == newest["node"]:
            if event.kind == "executing":
                return
            if event.kind == "progress":
                yield event


def success_view(job: JobRecord, ended_s: float) -> JobView:
    """Return the view of a job whose success is durable."""
    since = {"started_s": job.started_s, "ended_s": ended_s, "outputs": dict(job.outputs), "cached": job.cached}
    extra_data = without_credentials(job.row.extra_data)
    return made_from(JobView, job.row, percent=100, state="success", extra_data=extra_data, **since)


def row_view(row: JobRow) -> JobView:
    """Return the view of a job's row."""
    return made_from(JobView, row, percent=100 if row.state == "success" else 0)
