"""Which of a pool's ready tasks is next: what a running task waits for, then by the job's priority, then in plan order.

Tasks are found in that order among all, or among those of one model file, whatever the number of the others. It
knows no replicas.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from serve_app.scheduler.records import JobRecord, Priority, TaskRecord

TaskKey: TypeAlias = tuple[str, int]
"""A task by its job's id and its index there."""


class Entry(NamedTuple):
    """A ready task, in the order of the queue. ordinary: no running task of its job waits for it."""

    ordinary: bool
    priority: Priority
    job_id: str
    task_index: int

    @property
    def awaited(self) -> bool:
        """Whether a running task of its job waits for it."""
        return not self.ordinary

    @property
    def key(self) -> TaskKey:
        """The task."""
        return (self.job_id, self.task_index)


@dataclass(slots=True)
class Waiting:
    """A ready task in the queue.

    file: the model file it is served by, "" for none. work_s: how long it is expected to take a slot. first_s: how much
    work the queue had given out when it came to be the first of its file. held_s: when it was first held back although
    a replica was free.
    """

    entry: Entry
    file: str
    work_s: float
    first_s: float = 0.0
    held_s: float | None = None


class ReadyQueue:
    """The ready tasks of one pool."""

    def __init__(self) -> None:
        self._waiting: dict[TaskKey, Waiting] = {}
        # Heaps, in which entries stay that have left the queue otherwise; `_live` tells.
        self._by_file: dict[str, list[Entry]] = {}
        self._heads: list[Entry] = []
        self._waiting_s: defaultdict[str, float] = defaultdict(float)
        self._given_out_s = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Entry]:
        return (waiting.entry for waiting in self._waiting.values())

    @property
    def waiting_s(self) -> Mapping[str, float]:
        """How long the tasks of each model file are expected to take a slot, all together."""
        return self._waiting_s

    def push(self, job: JobRecord, task: TaskRecord, *, awaited: bool, file: str, work_s: float) -> None:
        """Add a ready task, or take in that it is awaited. file, work_s: as Waiting's."""
        entry = Entry(not awaited, job.priority, job.row.job_id, task.plan.index)
        if (earlier := self._waiting.get(entry.key)) is not None:
            if earlier.entry == entry:
                return
            self._leave(earlier)
        waiting = self._waiting[entry.key] = Waiting(entry, file, work_s)
        self._waiting_s[file] += work_s
        heapq.heappush(self._by_file.setdefault(file, []), entry)
        if self.first_of(file) is waiting:
            self._lead(waiting)

    def first(self) -> Waiting | None:
        """Return what is next and leave it there."""
        return next(iter(self.firsts(1)), None)

    def firsts(self, count: int) -> list[Waiting]:
        """Return the first task of each model file, in order, of at most so many files."""
        found: list[Waiting] = []
        while self._heads and len(found) < count:
            waiting = self._live(heapq.heappop(self._heads))
            # What is not the first of its file comes back once it is.
            if waiting is not None and self.first_of(waiting.file) is waiting and waiting not in found[-1:]:
                found.append(waiting)
        for waiting in found:
            heapq.heappush(self._heads, waiting.entry)
        return found

    def first_of(self, file: str) -> Waiting | None:
        """Return the first task that is served by a model file."""
        heap = self._by_file.get(file, [])
        while heap:
            if (waiting := self._live(heap[0])) is not None:
                return waiting
            heapq.heappop(heap)
        self._by_file.pop(file, None)
        return None

    def take(self, waiting: Waiting) -> None:
        """Take out a task that starts."""
        self._given_out_s += waiting.work_s
        self._leave(waiting)

    def remove(self, key: TaskKey) -> None:
        """Take out a task that will not start, if it is there."""
        if (waiting := self._waiting.get(key)) is not None:
            self._leave(waiting)

    def overtaken_s(self, waiting: Waiting) -> float:
        """Return how much work has been given out while a task was the first of its file."""
        return self._given_out_s - waiting.first_s

    def _live(self, entry: Entry) -> Waiting | None:
        waiting = self._waiting.get(entry.key)
        return waiting if waiting is not None and waiting.entry == entry else None

    def _lead(self, waiting: Waiting) -> None:
        waiting.first_s = self._given_out_s
        heapq.heappush(self._heads, waiting.entry)

    def _leave(self, waiting: Waiting) -> None:
        led = self.first_of(waiting.file) is waiting
        del self._waiting[waiting.entry.key]
        self._waiting_s[waiting.file] -= waiting.work_s
        if (following := self.first_of(waiting.file)) is None:
            del self._waiting_s[waiting.file]
        elif led:
            self._lead(following)
        if not self._waiting:
            self._heads.clear()
