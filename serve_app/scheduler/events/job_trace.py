"""The latest machine events of each unfinished job, for an operator who asks why one is stuck.

Short entries: names and ids, no values, and no progress or previews, which come by the thousand.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import NamedTuple

from serve_app.scheduler.core.events import (
    CancelAsked,
    JobArrived,
    JobRefused,
    MachineEvent,
    ReplicaJoined,
    ReplicaLeft,
    ReplicaLost,
    Reported,
)
from serve_app.scheduler.protocol.messages import NodePreviewed, NodeProgressed

ENTRIES_PER_JOB = 100
CLUSTER_ENTRIES = 200
"""Entries about joining and lost replicas, which concern every job."""


class TraceEntry(NamedTuple):
    """One machine event. number: its place among all, since the wall clock may go back."""

    number: int
    at_s: float
    what: str


class JobTrace:
    """The latest machine events of one epoch."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        # Not deques: an empty one takes as much as seventy places, and thousands of waiting jobs have one entry each.
        self._jobs: dict[str, list[TraceEntry]] = {}
        self._cluster: deque[TraceEntry] = deque(maxlen=CLUSTER_ENTRIES)

    def note(self, event: MachineEvent, at_s: float) -> None:
        """Add an event. at_s: Unix time."""
        match event:
            case JobArrived(row, _):
                self._jobs[row.job_id] = []
                self._add(row.job_id, at_s, "arrived")
            case CancelAsked(job_id) | JobRefused(job_id):
                self._add(job_id, at_s, type(event).__name__)
            case ReplicaJoined(info):
                what = f"replica {info.replica_id} joined pool {info.pool}"
                self._cluster.append(TraceEntry(next(self._numbers), at_s, what))
            case ReplicaLeft(replica_id) | ReplicaLost(replica_id, _, _):
                what = f"{type(event).__name__} {replica_id}"
                self._cluster.append(TraceEntry(next(self._numbers), at_s, what))
            case Reported(_, NodeProgressed() | NodePreviewed()):
                pass
            case Reported(replica_id, report):
                if (task_id := getattr(report, "task_id", None)) is not None:
                    what = getattr(report, "node_id", "") or getattr(report, "signature", "")
                    task = f"task {task_id.index}.{task_id.attempt}"
                    self._add(task_id.job_id, at_s, f"{type(report).__name__} {what} {task} on {replica_id}")

    def forget(self, job_id: str) -> None:
        """Forget a job that has ended."""
        self._jobs.pop(job_id, None)

    def of(self, job_id: str) -> list[tuple[float, str]]:
        """Return the entries of a job, and of replicas since its arrival: (Unix time, text), in order."""
        own = self._jobs.get(job_id, [])
        around = [entry for entry in self._cluster if own and entry.number > own[0].number]
        return [(entry.at_s, entry.what) for entry in sorted([*own, *around])]

    def _add(self, job_id: str, at_s: float, what: str) -> None:
        if (entries := self._jobs.get(job_id)) is not None:
            entries.append(TraceEntry(next(self._numbers), at_s, what))
            del entries[:-ENTRIES_PER_JOB]
