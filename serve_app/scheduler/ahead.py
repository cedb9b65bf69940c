"""What replicas are told to load ahead: the models of what they will take next, while they work.

A line that no replica holds the file of is going to be loaded for by one that has done its own. That one is told as
soon as the line is among the next of its pool, and counts as one that will hold the file from then on. It works with
what it has until the file is there, and then as long as after a load. One that has room is told also of the line that
comes first, if that keeps those that hold its file for SPREAD times as long as loading takes.

The first task of a line that replicas do hold may name files that they lack, such as a LoRA. The one of them that is
expected to be free first is told.

Pure; it looks at a few lines and replicas, however many there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from serve_app.recipe import Recipe
from serve_app.scheduler.costs import Costs
from serve_app.scheduler.dispatch import PATIENCE
from serve_app.scheduler.messages import Prefetch
from serve_app.scheduler.model_files import recipes_of
from serve_app.scheduler.ready_queue import Entry, ReadyQueue, Waiting
from serve_app.scheduler.records import JobRecord
from serve_app.scheduler.replicas import ReplicaRecord, Replicas

LOOKED_AT = 4
"""How many lines of a pool are looked at, in order, and how many of its replicas load for lines at once."""
HOLDERS_LOOKED_AT = 16
"""How many of the least busy replicas are looked at for one that is free soon and holds a line's file."""
SPREAD = 1.5
"""How many times as long as loading takes a line's tasks must take its replicas before another loads for it ahead."""
OVERDUE = 2.0
"""How many times as long as loading takes a task is held back from the replica that was told to load for it."""


class Ahead:
    """What replicas have been told of and do not hold yet."""

    def __init__(self, jobs: Mapping[str, JobRecord], replicas: Replicas, costs: Costs) -> None:
        self._jobs = jobs
        self._replicas = replicas
        self._costs = costs
        self._pools: dict[str, _Pool] = {}

    def changes(self, queues: Mapping[str, ReadyQueue], at_s: float) -> Iterator[tuple[str, Prefetch]]:
        """Yield what replicas are to be told, by their ids. queues: the ready tasks of each pool. at_s: Unix time."""
        for name, ready in queues.items():
            if name not in self._pools:
                self._pools[name] = _Pool(name, self._jobs, self._replicas, self._costs, ready)
            yield from self._pools[name].changes(at_s)


class _Line(NamedTuple):
    """What a replica was told to load for a line. told_s: the Unix time at which it was."""

    file: str
    told_s: float


class _Pool:
    """One pool: of each replica one line's models, or one task's."""

    def __init__(
        self, name: str, jobs: Mapping[str, JobRecord], replicas: Replicas, costs: Costs, ready: ReadyQueue
    ) -> None:
        self._name = name
        self._jobs = jobs
        self._replicas = replicas
        self._pool = replicas.pool(name)
        self._costs = costs
        self._ready = ready
        # By replica; of tasks those whose lines' files it holds.
        self._lines: dict[str, _Line] = {}
        self._tasks: dict[str, Entry] = {}
        # Of the tasks that were looked at last; to look for them costs as much as a graph has nodes.
        self._recipes_of: dict[Entry, tuple[Recipe, ...]] = {}

    def changes(self, at_s: float) -> Iterator[tuple[str, Prefetch]]:
        """Yield what replicas are to be told, by their ids. at_s: Unix time."""
        yield from self._lines_over(at_s)
        self._tasks_over()
        if not len(self._ready) or not self._costs.loads(self._name):
            return
        for place, waiting in enumerate(self._ready.firsts(LOOKED_AT)):
            if not waiting.file:
                continue
            if self._wants_taker(waiting, place) and (taker := self._taker(waiting)) is not None:
                yield from self._tell_of_line(taker, waiting, at_s)
            elif (holder := self._holder(waiting)) is not None:
                yield from self._tell_of_task(holder, waiting)

    def _tell_of_line(self, record: ReplicaRecord, waiting: Waiting, at_s: float) -> Iterator[tuple[str, Prefetch]]:
        if recipes := self._recipes(waiting):
            self._tasks.pop(record.info.replica_id, None)
            self._lines[record.info.replica_id] = _Line(waiting.file, at_s)
            owed_s = PATIENCE * self._load_s(waiting.file) * record.info.slots
            self._replicas.expect(record, waiting.file, owed_s)
            yield record.info.replica_id, Prefetch(recipes, self._spare(record))

    def _tell_of_task(self, record: ReplicaRecord, waiting: Waiting) -> Iterator[tuple[str, Prefetch]]:
        if recipes := self._recipes(waiting):
            self._tasks[record.info.replica_id] = waiting.entry
            yield record.info.replica_id, Prefetch(recipes, self._spare(record))

    def _lines_over(self, at_s: float) -> Iterator[tuple[str, Prefetch]]:
        """Forget what replicas hold by now, and call off what nobody waits for any more."""
        for replica_id, line in [*self._lines.items()]:
            record = self._pool.records.get(replica_id)
            if record is None or line.file in record.held:
                self._forget_line(replica_id)
            elif self._ready.first_of(line.file) is None:
                self._forget_line(replica_id)
                yield replica_id, Prefetch()
            # It may have had no room. The clock may be set meanwhile.
            elif not 0.0 <= at_s - line.told_s < OVERDUE * self._load_s(line.file):
                self._replicas.wait_no_longer(record)

    def _forget_line(self, replica_id: str) -> None:
        del self._lines[replica_id]
        if (record := self._replicas.get(replica_id)) is not None:
            self._replicas.expect(record, None)

    def _tasks_over(self) -> None:
        for replica_id, entry in [*self._tasks.items()]:
            record = self._pool.records.get(replica_id)
            if record is None or not self._ready.has(entry) or record.held.issuperset(self._files(entry)):
                del self._tasks[replica_id]

    def _spare(self, record: ReplicaRecord) -> tuple[str, ...]:
        """Return the files that a replica has, or will have, which queued tasks are served by."""
        return tuple(sorted(file for file in record.files if self._ready.first_of(file) is not None))

    def _recipes(self, waiting: Waiting) -> tuple[Recipe, ...]:
        entry = waiting.entry
        if entry not in self._recipes_of:
            if len(self._recipes_of) == 2 * LOOKED_AT:
                del self._recipes_of[next(iter(self._recipes_of))]
            job = self._jobs[entry.job_id]
            self._recipes_of[entry] = recipes_of(job.plan.graph, job.tasks[entry.task_index].plan.nodes)
        return self._recipes_of[entry]

    def _files(self, entry: Entry) -> tuple[str, ...]:
        return self._jobs[entry.job_id].files.all

    def _load_s(self, file: str) -> float:
        return self._costs.load_s(self._name, file)

    def _wants_taker(self, waiting: Waiting, place: int) -> bool:
        """Whether one more replica is to load for a task's line. place: how many lines are before it."""
        slots = self._pool.slots_with(waiting.file)
        if not slots or place > 0:
            return not slots
        spread = self._ready.waiting_s[waiting.file] >= SPREAD * self._load_s(waiting.file) * slots
        return spread and all(line.file != waiting.file for line in self._lines.values())

    def _taker(self, waiting: Waiting) -> ReplicaRecord | None:
        """Return a replica that is likely to take a task's line next, and to have room for its model meanwhile.

        It has no line of its own, or only such as come later in order, and has worked as long as it should with what
        it loaded. None of its pool has let weights go for others yet, one has held more files than it does, or it holds
        some that nobody needs.
        """
        ready, pool = self._ready, self._pool
        held = pool.slots_with(waiting.file) > 0

        def turns(record: ReplicaRecord) -> bool:
            # What it works at says of most replicas that they go on with it.
            if record.owed_s > 0.0 and any(ready.first_of(work.file) for work in record.work.values()):
                return False
            files = record.files
            if waiting.file in files:
                return False
            own = {file: first for file in files if (first := ready.first_of(file)) is not None}
            if own and (record.owed_s > 0.0 or min(map(ready.place, own.values())) < ready.place(waiting)):
                return False
            if len(record.models) < pool.most_models:
                return True
            used = own.keys() | {file for work in record.work.values() for file in work.files}
            return not held and (not pool.crowded or not record.held <= used)

        if len(self._lines) >= LOOKED_AT:
            return None
        there = (record for record in pool.open.first(2 * LOOKED_AT) if record.info.replica_id not in self._lines)
        return next(filter(turns, there), None)

    def _holder(self, waiting: Waiting) -> ReplicaRecord | None:
        """Return the replica that is expected to take a task, the first of its line, if it lacks some of its files.

        Of those that hold the line's file and have been told nothing it is the one that is free first.
        """
        files = self._files(waiting.entry)
        if len(files) == 1 or waiting.entry in self._tasks.values():
            return None
        told = self._lines.keys() | self._tasks.keys()
        untold = (r for r in self._pool.open.first(HOLDERS_LOOKED_AT) if r.info.replica_id not in told)
        holders = (record for record in untold if waiting.file in record.files)
        record = min(holders, key=lambda record: record.due_s, default=None)
        return None if record is None or record.files.issuperset(files) else record
