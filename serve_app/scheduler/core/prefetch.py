"""What replicas are told to load ahead: the models of what they will take next, while they work.

A line that no replica holds the file of is going to be loaded for by one that has done its own. That one is told as
soon as the line is among the next of its pool, and counts as one that will hold the file from then on. It works with
what it has until the file is there, and then as long as after a load. One that has room is told already where it will
have done its own lines before loading would be over; and of a line too that will keep those that hold its file for
SPREAD times as long as loading takes, until they have begun all of it.

The next tasks of a line that replicas do hold may name files that they lack, such as a LoRA. Of them the one that is
expected to be free first is told of the first task, the next one of the second.

Pure; it looks at a few lines and replicas, however many there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from serve_app.recipe import Recipe
from serve_app.scheduler.core.costs import Costs
from serve_app.scheduler.core.dispatch import MIN_WORK_PER_LOAD, free_in_s
from serve_app.scheduler.core.model_files import recipes_of
from serve_app.scheduler.core.ready_queue import Entry, ReadyQueue, Waiting
from serve_app.scheduler.core.records import JobRecord
from serve_app.scheduler.core.replicas import ReplicaRecord, Replicas
from serve_app.scheduler.protocol.messages import Prefetch

LOOKED_AT = 8
"""How many lines of a pool are looked at, in order, how many replicas that hold the file of one, and how many replicas
load for lines at once."""
NEXT = 4
"""How many tasks of a line are looked at."""
SPREAD = 1.5
"""How many times as long as loading takes a line must wait for its replicas before another loads for it ahead."""
OVERDUE = 2.0
"""How many times as long as loading takes a task is held back from the replica that was told to load for it."""


class Prefetcher:
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


class _Changing(NamedTuple):
    """A replica that may take another line. files: of which it holds the weights or will. has_room: whether it is known
    to have some for another model. place: that of the first task of its own lines, if it has worked as long as it
    should with what it loaded. done_s: in how long it is expected to have done those lines; 0 for none.
    """

    record: ReplicaRecord
    files: frozenset[str]
    has_room: bool
    place: tuple[float, str, Entry] | None
    done_s: float


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
        changing: list[_Changing] | None = None
        firsts = self._ready.firsts(LOOKED_AT)
        for waiting in firsts:
            if not waiting.file:
                continue
            taker = None
            if self._wants_taker(waiting, at_s):
                if changing is None:
                    changing = [*self._changing(max(self._load_s(first.file) for first in firsts), at_s)]
                taker = self._taker(waiting, changing)
            if taker is not None:
                yield from self._tell_of_line(taker, waiting, at_s)
            else:
                for holder, task in self._lacking(waiting.file):
                    yield from self._tell_of_task(holder, task)

    def _tell_of_line(self, record: ReplicaRecord, waiting: Waiting, at_s: float) -> Iterator[tuple[str, Prefetch]]:
        if recipes := self._recipes(waiting):
            self._tasks.pop(record.info.replica_id, None)
            self._lines[record.info.replica_id] = _Line(waiting.file, at_s)
            owed_s = MIN_WORK_PER_LOAD * self._load_s(waiting.file) * record.info.slots
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
        return tuple(sorted(self._ready.lines & record.files))

    def _recipes(self, waiting: Waiting) -> tuple[Recipe, ...]:
        entry = waiting.entry
        if entry not in self._recipes_of:
            if len(self._recipes_of) == 2 * LOOKED_AT * NEXT:
                del self._recipes_of[next(iter(self._recipes_of))]
            job = self._jobs[entry.job_id]
            self._recipes_of[entry] = recipes_of(job.plan.graph, job.tasks[entry.task_index].plan.nodes)
        return self._recipes_of[entry]

    def _files(self, entry: Entry) -> tuple[str, ...]:
        return self._jobs[entry.job_id].files.all

    def _load_s(self, file: str) -> float:
        return self._costs.load_s(self._name, file)

    def _wants_taker(self, waiting: Waiting, at_s: float) -> bool:
        """Whether one more replica is to load for the line that a task is the first of."""
        file = waiting.file
        if not (slots := self._pool.slots_with(file)):
            return True
        if len(self._lines) >= LOOKED_AT or any(line.file == file for line in self._lines.values()):
            return False
        begun_s = free_in_s(file, self._pool, at_s) + (self._ready.waiting_s[file] - waiting.work_s) / slots
        return begun_s >= SPREAD * self._load_s(file)

    def _changing(self, within_s: float, at_s: float) -> Iterator[_Changing]:
        """Yield those of the least busy replicas that have been told of no line and may take one.

        within_s: how long the longest load takes for which one is wanted.
        """
        if len(self._lines) >= LOOKED_AT:
            return
        lines = self._ready.lines
        for record in self._pool.open.first(2 * LOOKED_AT):
            if record.info.replica_id in self._lines:
                continue
            # Of one that holds nothing yet it is not known what room its first model leaves.
            has_room = 0 < len(record.models) < self._pool.most_models
            if record.owed_s > 0.0:
                # What it works at says of most replicas that they go on with it.
                going_on = {work.file for work in record.work.values() if work.file in lines}
                if going_on and (not has_room or self._lines_s(going_on) >= within_s):
                    continue
            files = record.files
            own, place, done_s = lines & files, None, 0.0
            if own:
                if record.owed_s <= 0.0:
                    firsts = [first for file in own if (first := self._ready.first_of(file)) is not None]
                    place = min(map(self._ready.place, firsts), default=None)
                elif not has_room:
                    continue
                done_s = max(0.0, record.due_s - at_s) + self._lines_s(own)
            yield _Changing(record, files, has_room, place, done_s)

    def _lines_s(self, files: Iterable[str]) -> float:
        """Return how long the lines of some files are expected to take, one after another, those that hold each.

        What needs no file, which every replica can do, takes none.
        """
        waiting_s, slots_with = self._ready.waiting_s, self._pool.slots_with
        return sum([waiting_s[file] / slots for file in files if (slots := slots_with(file))])

    def _taker(self, waiting: Waiting, changing: Sequence[_Changing]) -> ReplicaRecord | None:
        """Return the replica that is likely to take a task's line next, and to have room for its model meanwhile.

        It has room if one of its pool has held more models than it does; where nobody holds the file, also if it holds
        some that nobody needs, or if none of its pool has evicted weights for others yet. It has no line of its own,
        or has worked as long as it should with what it loaded and has none that comes before in order. One that has
        held more models may also have lines of its own that it will have done before loading would be over.
        """
        order, load_s = self._ready.place(waiting), self._load_s(waiting.file)
        held = self._pool.slots_with(waiting.file) > 0
        for record, files, has_room, place, done_s in changing:
            if record.info.replica_id in self._lines or waiting.file in files:
                continue
            soon = not done_s or (has_room and done_s < load_s)
            if not soon and (place is None or place < order):
                continue
            if has_room or (not held and (not self._pool.crowded or self._unneeded(record))):
                return record
        return None

    def _unneeded(self, record: ReplicaRecord) -> bool:
        """Whether a replica holds something that nobody needs."""
        needed = (self._ready.lines & record.held).union(*(work.files for work in record.work.values()))
        return not record.held <= needed

    def _lacking(self, file: str) -> Iterator[tuple[ReplicaRecord, Waiting]]:
        """Yield the next tasks of a line, each with the replica that is expected to take it, if it lacks some files.

        Of those that hold the line's file and have been told nothing, the one that is free first takes the first task.
        """
        holders = [record for record in self._pool.holders(file).first(LOOKED_AT) if not self._told(record)]
        if not holders:
            return
        tasks = self._ready.nexts_of(file, NEXT)
        if all(len(self._files(task.entry)) == 1 for task in tasks):
            return
        holders.sort(key=lambda record: record.due_s)
        tasks = [task for task in tasks if task.entry not in self._tasks.values()]
        for record, task in zip(holders, tasks, strict=False):
            if not record.files.issuperset(self._files(task.entry)):
                yield record, task

    def _told(self, record: ReplicaRecord) -> bool:
        return record.info.replica_id in self._lines or record.info.replica_id in self._tasks
