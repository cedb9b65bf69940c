"""Databases that have jobs before their server starts: a hundred thousand are there in half a minute."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from serve_app.events import Failure
from serve_app.graph.spec import NodeSpec
from serve_app.store.database.changes import Change, JobAccepted, JobEnded, JobRow, JobStarted, OutputRecorded
from serve_app.store.database.jobs import Jobs

PORTION = 1000
HOUR_S = 3600.0
CURSORS = 10
"""How many events a job has, about."""


def fill(directory: Path, jobs: Iterable[Sequence[Change]], specs: Mapping[str, Sequence[NodeSpec]]) -> None:
    """Write jobs into the database that a server in this directory will open. specs: what pools can run."""
    database = Jobs(f"sqlite:///{directory}/jobs.sqlite")
    epoch = database.acquire("bench")
    for pool, known in specs.items():
        database.save_specs(epoch, pool, [spec.to_json() for spec in known], [])
    left = iter(jobs)
    while portion := list(islice(left, PORTION)):
        database.write(epoch, [change for job in portion for change in job])
    database.close()


def waiting(order: int, prompt: Mapping[str, Any], target: str) -> list[Change]:
    """Return what a job that waits has gone through. target: its output node."""
    at_s = time.time() - HOUR_S + order / 100
    job_id, client_id = str(uuid.uuid4()), f"client {order % 100}"
    return [JobAccepted(JobRow(job_id, float(order), order, prompt, (target,), client_id, {}, at_s, CURSORS * order))]


def ended(order: int, prompt: Mapping[str, Any], target: str, shown: Mapping[str, Any]) -> list[Change]:
    """Return what a job that has ended well has gone through. shown: by its output node."""
    accepted = waiting(order, prompt, target)
    [row] = [change.row for change in accepted if isinstance(change, JobAccepted)]
    return [
        *accepted,
        JobStarted(row.job_id, row.created_s, row.queued_seq + 1),
        OutputRecorded(row.job_id, target, shown, row.queued_seq + 3),
        JobEnded(row.job_id, "success", row.created_s + 1, row.queued_seq + 4, Failure()),
    ]
