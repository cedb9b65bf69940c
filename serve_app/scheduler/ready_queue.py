"""Which of a pool's ready tasks is next: what a running task waits for, then by the job's priority, then in plan order.

An entry outlives what it stands for: whoever takes it checks that its task is ready still.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import NamedTuple

from serve_app.scheduler.records import JobRecord, TaskRecord


class Entry(NamedTuple):
    """A ready task, in the order of the queue. ordinary: no running task of its job waits for it."""

    ordinary: bool
    priority: tuple[float, int]
    job_id: str
    task_index: int

    @property
    def awaited(self) -> bool:
        """Whether a running task of its job waits for it."""
        return not self.ordinary


class ReadyQueue:
    """The ready tasks of one pool."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def push(self, job: JobRecord, task: TaskRecord, *, awaited: bool) -> None:
        """Add a ready task; one may be there several times."""
        heapq.heappush(self._entries, Entry(not awaited, job.priority, job.row.job_id, task.plan.index))

    def first(self) -> Entry | None:
        """Return what is next and leave it there."""
        return self._entries[0] if self._entries else None

    def pop(self) -> None:
        """Take out what is next."""
        heapq.heappop(self._entries)
