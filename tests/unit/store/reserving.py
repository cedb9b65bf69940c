"""Counters reserved as the scheduler has them reserved."""

from __future__ import annotations

from serve_app.store.database.changes import CountersReserved
from serve_app.store.database.jobs import Jobs
from serve_app.store.files.reserved import Contents


def reserve(
    jobs: Jobs, epoch: int, job_id: str, node_id: str, key: str, at_least: int, contents: Contents
) -> tuple[int, bool]:
    """Return the first counter, and whether it had been reserved before."""
    change = CountersReserved(job_id, node_id, key, at_least, contents)
    jobs.write(epoch, [change])
    assert change.again is not None
    return change.first, change.again
