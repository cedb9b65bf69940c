"""`serve-app queue`, `jobs` and `history`: jobs as rows, with owner, model, place and how long they wait about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from serve_app.graph.first_model import first_model


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """An unfinished job. owner: its tenant, "" for the operator or a server without tenants. model: of its graph, "" if
    it names none. place: in the queue, from 1, None while it runs. wait_s: about how long it waits for its start, None
    if it runs or that is not known.
    """

    job_id: str
    owner: str
    model: str
    place: int | None = None
    wait_s: float | None = None

    def cells(self) -> tuple[str, str, str, str]:
        """Return the row: place, job, owner, model."""
        wait = "" if self.wait_s is None else f", about {self.wait_s:.0f} s"
        return (
            "runs" if self.place is None else f"{self.place}{wait}",
            self.job_id,
            self.owner or "-",
            self.model or "-",
        )


def queued_jobs(queue: Mapping[str, Any], status: Mapping[str, Any]) -> list[QueuedJob]:
    """Return the running jobs, then the waiting ones in the order in which they will start.

    queue, status: the answers of `GET /api/queue` and `GET /status`.
    """
    waiting = queue["queue_pending"]
    slots = sum(replica["slots"] for replica in status["replicas"])
    backlog_s = sum(pool["waiting_s"] for pool in status["load"]["pools"])
    each_s = backlog_s / slots / len(waiting) if slots and waiting and backlog_s else None
    running = [_queued(item) for item in queue["queue_running"]]
    return running + [
        replace(_queued(item), place=place, wait_s=None if each_s is None else each_s * place)
        for place, item in enumerate(waiting, 1)
    ]


def queue_lines(jobs: list[QueuedJob]) -> Iterator[str]:
    """Yield a line for each job."""
    rows = [("place", "job", "owner", "model"), *(job.cells() for job in jobs)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows if jobs else ():
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
    if not jobs:
        yield "no job runs or waits"


def job_lines(answer: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each job of `GET /api/jobs`: submission, state, how long it ran, id, and why it failed."""
    for job in answer["jobs"]:
        at = datetime.fromtimestamp(job["create_time"] / 1000).isoformat(" ", "seconds")
        began, ended = job.get("execution_start_time"), job.get("execution_end_time")
        ran = f"{(ended - began) / 1000:.1f} s" if began and ended else "-"
        why = (job.get("execution_error") or {}).get("exception_message", "")
        yield f"{at}  {job['status']:11}  {ran:>8}  {job['id']}  {why}".rstrip()
    if left := answer["pagination"]["total"] - len(answer["jobs"]):
        yield f"and {left} more"


def _queued(item: Sequence[Any]) -> QueuedJob:
    """Return a job of the queue's list. An operator sees a tenant's job as ID@TENANT."""
    _, job_id, prompt, *_ = item
    return QueuedJob(job_id, job_id.partition("@")[2], first_model(prompt))
