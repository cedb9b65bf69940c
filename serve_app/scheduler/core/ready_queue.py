"""Which of a pool's ready tasks is next: what a running task waits for, then whose tenant's turn it is, then by the
job's priority, then in plan order.

Tasks are found in that order among all, or among those of one model file, whatever the number of the others. It
knows no replicas.
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
"""A task by its job's id and its index there."""


class Entry(NamedTuple):
    """A ready task, in the order of its tenant. ordinary: no running task of its job waits for it."""

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

    tenant: whose it is. file: the model file it is served by, "" for none. work_s: how long it is expected to take a
    slot. first_s: how much work the queue had given out when it came to be the first of its tenant and file. held_s:
    when it was first held back although a replica was free.
    """

    entry: Entry
    tenant: str
    file: str
    work_s: float
    first_s: float = 0.0
    held_s: float | None = None

    @property
    def turn(self) -> str:
        """By whose turn it is served: its tenant's, or at once."""
        return FIRST if self.entry.awaited else self.tenant


class ReadyQueue:
    """The ready tasks of one pool. shares: whose turn it is there; told of every task that waits, and waits no more."""

    def __init__(self, shares: FairShare) -> None:
        self._shares = shares
        self._waiting: dict[TaskKey, Waiting] = {}
        self._turns = Ranking(shares)
        # By whose turn, and of which file: heaps, in which entries stay that have left the queue otherwise; `_live`
        # tells. And whose turn of those that wait for a file.
        self._lines: dict[tuple[str, str], list[Entry]] = {}
        self._heads: dict[str, list[Entry]] = {}
        self._files: Counter[str] = Counter()
        self._turns_of: dict[str, Ranking] = {}
        self._waiting_s: defaultdict[str, float] = defaultdict(float)
        self._served_s: dict[str, float] = {}
        self._given_out_s = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Entry]:
        return (waiting.entry for waiting in self._waiting.values())

    def has(self, entry: Entry) -> bool:
        """Whether a task is there, in this place."""
        return self._live(entry) is not None

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
        waiting = self._waiting[entry.key] = Waiting(entry, job.tenant, file, work_s)
        self._shares.enter(waiting.tenant)
        self._waiting_s[file] += work_s
        if (line := self._lines.get((waiting.turn, file))) is None:
            line = self._lines[waiting.turn, file] = []
            self._files[waiting.turn] += 1
        heapq.heappush(line, entry)
        if self._first_of(waiting.turn, file) is waiting:
            self._lead(waiting)

    def first(self) -> Waiting | None:
        """Return what is next and leave it there."""
        turn = self._turns.first()
        return None if turn is None else self._firsts_of(turn, 1)[0]

    def firsts(self, count: int) -> list[Waiting]:
        """Return the first task of each model file, in order, of at most so many files and as many tenants."""
        turns = self._turns.firsts(count)
        if len(turns) == 1:
            return self._firsts_of(turns[0], count)
        found: dict[str, Waiting] = {}
        for turn in turns:
            for waiting in self._firsts_of(turn, count):
                found.setdefault(waiting.file, waiting)
            if len(found) >= count:
                break
        return list(found.values())[:count]

    @property
    def lines(self) -> KeysView[str]:
        """The model files that tasks are there for, "" for none."""
        return self._turns_of.keys()

    def first_of(self, file: str) -> Waiting | None:
        """Return the first task that is served by a model file."""
        turns = self._turns_of.get(file)
        turn = None if turns is None else turns.first()
        return None if turn is None else self._first_of(turn, file)

    def nexts_of(self, file: str, count: int) -> list[Waiting]:
        """Return the first tasks of a model file, in order, of the one whose turn it is there; at most so many.

        They may be fewer than there are where many others have left the queue.
        """
        turns = self._turns_of.get(file)
        turn = None if turns is None else turns.first()
        if turn is None:
            return []
        line, found = self._lines[turn, file], list[Waiting]()
        if len(line) == 1:
            return [waiting] if (waiting := self._live(line[0])) is not None else []
        # In a heap, what follows is below what was found.
        rest = [(line[0], 0)]
        for _ in range(4 * count):
            if not rest or len(found) == count:
                break
            entry, at = heapq.heappop(rest)
            if (waiting := self._live(entry)) is not None and waiting not in found[-1:]:
                found.append(waiting)
            for below in range(2 * at + 1, min(2 * at + 3, len(line))):
                heapq.heappush(rest, (line[below], below))
        return found

    def place(self, waiting: Waiting) -> tuple[float, str, Entry]:
        """Return a task's place in the order of all, at this moment."""
        return (self._shares.time(waiting.turn), waiting.turn, waiting.entry)

    def take(self, waiting: Waiting) -> None:
        """Take out a task that starts."""
        self._given_out_s += waiting.work_s
        self._served_s[waiting.file] = self._given_out_s
        self._leave(waiting)

    def remove(self, key: TaskKey) -> None:
        """Take out a task that will not start, if it is there."""
        if (waiting := self._waiting.get(key)) is not None:
            self._leave(waiting)

    def overtaken_s(self, waiting: Waiting) -> float:
        """Return how much work has been given out while a task was the first of its line, none of that line."""
        return self._given_out_s - max(waiting.first_s, self._served_s.get(waiting.file, 0.0))

    def _firsts_of(self, turn: str, count: int) -> list[Waiting]:
        """Return the first task of each model file of those with this turn, in order, of at most so many files."""
        heads = self._heads[turn]
        found: list[Waiting] = []
        while heads:
            waiting = self._live(heads[0])
            # What is not the first of its file comes back once it is.
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

    def _first_of(self, turn: str, file: str) -> Waiting | None:
        line = self._lines.get((turn, file), [])
        while line:
            if (waiting := self._live(line[0])) is not None:
                return waiting
            heapq.heappop(line)
        self._lines.pop((turn, file), None)
        return None

    def _live(self, entry: Entry) -> Waiting | None:
        waiting = self._waiting.get(entry.key)
        return waiting if waiting is not None and waiting.entry == entry else None

    def _lead(self, waiting: Waiting) -> None:
        waiting.first_s = self._given_out_s
        heapq.heappush(self._heads.setdefault(waiting.turn, []), waiting.entry)
        self._turns.add(waiting.turn)
        self._turns_of.setdefault(waiting.file, Ranking(self._shares)).add(waiting.turn)

    def _leave(self, waiting: Waiting) -> None:
        turn, file = waiting.turn, waiting.file
        led = self._first_of(turn, file) is waiting
        del self._waiting[waiting.entry.key]
        self._waiting_s[file] -= waiting.work_s
        if (following := self._first_of(turn, file)) is not None:
            if led:
                self._lead(following)
        else:
            self._end_line(turn, file)
        self._shares.leave(waiting.tenant)

    def _end_line(self, turn: str, file: str) -> None:
        """Forget a line of which nothing waits."""
        turns = self._turns_of[file]
        turns.discard(turn)
        if not len(turns):
            del self._turns_of[file], self._waiting_s[file]
            self._served_s.pop(file, None)
        self._files[turn] -= 1
        if not self._files[turn]:
            del self._files[turn], self._heads[turn]
            self._turns.discard(turn)
