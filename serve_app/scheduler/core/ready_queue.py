"""The ready tasks of one pool in order, and of each of its model queues.

Order: tasks that a running task waits for, then by the tenants' turns, the jobs' priorities and the plans. The first
task of all, or of one model file, is found without a scan. Knows no replicas.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterator, KeysView, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from serve_app.scheduler.core.fair_share import FIRST, FairShare, Ranking
from serve_app.scheduler.core.records import JobRecord, Priority, TaskRecord

TaskKey: TypeAlias = tuple[str, int]
"""A task: its job's id and its index in the plan."""


class QueueEntry(NamedTuple):
    """The sort key of a ready task among its tenant's. ordinary: no running task of its job waits for it."""

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
class QueuedTask:
    """A ready task in the queue.

    file: the model file of its model queue, "" for none. work_s: the seconds that it is expected to take a slot.
    first_s: the work in seconds that had left the pool's queue when this became the first of its tenant and file.
    deferred_s: the Unix time at which it was first made to wait although a replica was free.
    """

    entry: QueueEntry
    tenant: str
    file: str
    work_s: float
    first_s: float = 0.0
    deferred_s: float | None = None

    @property
    def turn(self) -> str:
        """The tenant whose turn it takes, or FIRST."""
        return FIRST if self.entry.awaited else self.tenant


class ReadyQueue:
    """The ready tasks of one pool. shares: whose turn it is; counts the tasks that wait here."""

    def __init__(self, shares: FairShare) -> None:
        self._shares = shares
        self.waiting: dict[TaskKey, QueuedTask] = {}
        self._turns = Ranking(shares)
        # Heaps by (turn, file) and by turn. Entries of tasks that have left stay in them; `_live` skips those.
        self._queues: dict[tuple[str, str], list[QueueEntry]] = {}
        self._heads: dict[str, list[QueueEntry]] = {}
        self._files: Counter[str] = Counter()
        self._turns_of: dict[str, Ranking] = {}
        self._waiting_s: defaultdict[str, float] = defaultdict(float)
        self._served_s: dict[str, float] = {}
        self._given_out_s = 0.0

    def __len__(self) -> int:
        return len(self.waiting)

    def __iter__(self) -> Iterator[QueueEntry]:
        return (waiting.entry for waiting in self.waiting.values())

    def has(self, entry: QueueEntry) -> bool:
        """Whether a task is queued with exactly this sort key."""
        return self._live(entry) is not None

    @property
    def waiting_s(self) -> Mapping[str, float]:
        """The seconds of one slot that the tasks of each model file are expected to take together."""
        return self._waiting_s

    def push(self, job: JobRecord, task: TaskRecord, *, awaited: bool, file: str, work_s: float) -> None:
        """Add a ready task, or move one that is awaited from now on. file, work_s: as QueuedTask's."""
        entry = QueueEntry(not awaited, job.priority, job.row.job_id, task.plan.index)
        if (earlier := self.waiting.get(entry.key)) is not None:
            if earlier.entry == entry:
                return
            self._leave(earlier)
        waiting = self.waiting[entry.key] = QueuedTask(entry, job.tenant, file, work_s)
        self._shares.enter(waiting.tenant)
        self._waiting_s[file] += work_s
        if (queue := self._queues.get((waiting.turn, file))) is None:
            queue = self._queues[waiting.turn, file] = []
            self._files[waiting.turn] += 1
        heapq.heappush(queue, entry)
        if self._first_of(waiting.turn, file) is waiting:
            self._lead(waiting)

    def first(self) -> QueuedTask | None:
        """Return the first task in order, without removing it."""
        turn = self._turns.first()
        return None if turn is None else self._firsts_of(turn, 1)[0]

    def firsts(self, count: int) -> list[QueuedTask]:
        """Return the first task of each model file, in order, of at most `count` files and tenants."""
        turns = self._turns.firsts(count)
        if len(turns) == 1:
            return self._firsts_of(turns[0], count)
        found: dict[str, QueuedTask] = {}
        for turn in turns:
            for waiting in self._firsts_of(turn, count):
                found.setdefault(waiting.file, waiting)
            if len(found) >= count:
                break
        return list(found.values())[:count]

    @property
    def model_files(self) -> KeysView[str]:
        """The model files with queued tasks, "" for tasks without one."""
        return self._turns_of.keys()

    def first_of(self, file: str) -> QueuedTask | None:
        """Return the first task of a model file's queue."""
        turns = self._turns_of.get(file)
        turn = None if turns is None else turns.first()
        return None if turn is None else self._first_of(turn, file)

    def nexts_of(self, file: str, count: int) -> list[QueuedTask]:
        """Return up to `count` first tasks of a model file, in order, of the tenant whose turn it is.

        May return fewer than there are if many others have left the queue.
        """
        turns = self._turns_of.get(file)
        turn = None if turns is None else turns.first()
        if turn is None:
            return []
        queue, found = self._queues[turn, file], list[QueuedTask]()
        if len(queue) == 1:
            return [waiting] if (waiting := self._live(queue[0])) is not None else []
        # In a heap, what follows is below what was found.
        rest = [(queue[0], 0)]
        for _ in range(4 * count):
            if not rest or len(found) == count:
                break
            entry, at = heapq.heappop(rest)
            if (waiting := self._live(entry)) is not None and waiting not in found[-1:]:
                found.append(waiting)
            for below in range(2 * at + 1, min(2 * at + 3, len(queue))):
                heapq.heappush(rest, (queue[below], below))
        return found

    def place(self, waiting: QueuedTask) -> tuple[float, str, QueueEntry]:
        """Return a task's sort key among all tasks of the pool, valid until something starts or ends."""
        return (self._shares.time(waiting.turn), waiting.turn, waiting.entry)

    def take(self, waiting: QueuedTask) -> None:
        """Remove a task that starts."""
        self._given_out_s += waiting.work_s
        self._served_s[waiting.file] = self._given_out_s
        self._leave(waiting)

    def remove(self, key: TaskKey) -> None:
        """Remove a task that will not start, if it is queued."""
        if (waiting := self.waiting.get(key)) is not None:
            self._leave(waiting)

    def overtaken_s(self, waiting: QueuedTask) -> float:
        """Return the seconds of work of other queues that started while a task was the first of its own."""
        return self._given_out_s - max(waiting.first_s, self._served_s.get(waiting.file, 0.0))

    def _firsts_of(self, turn: str, count: int) -> list[QueuedTask]:
        """Return the first task of each model file among those with this turn, in order, of at most `count` files."""
        heads = self._heads[turn]
        found: list[QueuedTask] = []
        while heads:
            waiting = self._live(heads[0])
            # A task that is not the first of its file is pushed again when it becomes that.
            if waiting is None or self._first_of(turn, waiting.file) is not waiting or waiting in found[-1:]:
                heapq.heappop(heads)
                continue
            found.append(waiting)
            if len(found) == count:
                break
            heapq.heappop(heads)
        for waiting in found[: count - 1]:
            heapq.heappush(heads, waiting.entry)
        return found

    def _first_of(self, turn: str, file: str) -> QueuedTask | None:
        queue = self._queues.get((turn, file), [])
        while queue:
            if (waiting := self._live(queue[0])) is not None:
                return waiting
            heapq.heappop(queue)
        self._queues.pop((turn, file), None)
        return None

    def _live(self, entry: QueueEntry) -> QueuedTask | None:
        waiting = self.waiting.get(entry.key)
        return waiting if waiting is not None and waiting.entry == entry else None

    def _lead(self, waiting: QueuedTask) -> None:
        waiting.first_s = self._given_out_s
        heapq.heappush(self._heads.setdefault(waiting.turn, []), waiting.entry)
        self._turns.add(waiting.turn)
        self._turns_of.setdefault(waiting.file, Ranking(self._shares)).add(waiting.turn)

    def _leave(self, waiting: QueuedTask) -> None:
        turn, file = waiting.turn, waiting.file
        led = self._first_of(turn, file) is waiting
        del self.waiting[waiting.entry.key]
        self._waiting_s[file] -= waiting.work_s
        if (following := self._first_of(turn, file)) is not None:
            if led:
                self._lead(following)
        else:
            self._drop_queue(turn, file)
        self._shares.leave(waiting.tenant)

    def _drop_queue(self, turn: str, file: str) -> None:
        """Forget a model queue that is empty."""
        turns = self._turns_of[file]
        turns.discard(turn)
        if not len(turns):
            del self._turns_of[file], self._waiting_s[file]
            self._served_s.pop(file, None)
        self._files[turn] -= 1
        if not self._files[turn]:
            del self._files[turn], self._heads[turn]
            self._turns.discard(turn)
