"""Chooses the models that replicas prefetch: those of the tasks that they will probably take next, while they work.

1. A queue whose file no replica has will be taken over by one that has finished its own queue. That replica prefetches
   the file as soon as the queue is among the next of its pool, and counts as one that has the file from then on. It
   keeps working with what it has until the file is loaded, then serves the queue as long as after a load.
2. A replica with room prefetches early if it will drain its own queues before the load ends.
3. It does so too if the backlog of a queue whose file is loaded elsewhere exceeds SPREAD times the loading time.
4. The next tasks of a queue may name files that its replicas lack, such as a LoRA. The replica that is expected to be
   free first prefetches for the first task, the next one for the second.

Pure. Considers a few queues and replicas, however many there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from serve_app.recipe.recipe import Recipe
from serve_app.scheduler.core.costs import Costs
from serve_app.scheduler.core.dispatch import MIN_WORK_PER_LOAD, free_in_s
from serve_app.scheduler.core.model_files import recipes_of
from serve_app.scheduler.core.ready_queue import QueuedTask, QueueEntry, ReadyQueue
from serve_app.scheduler.core.records import JobRecord
from serve_app.scheduler.core.replicas import ReplicaRecord, Replicas
from serve_app.scheduler.protocol.messages import Prefetch

CANDIDATES = 8
"""How many queues of a pool are considered, how many replicas of a queue's file, and how many replicas of a pool
prefetch for queues at once."""
NEXT = 4
"""How many tasks of a queue are considered."""
SPREAD = 1.5
"""In loading times: how long a queue must wait for its replicas before another one prefetches for it."""
OVERDUE = 2.0
"""In loading times: how long a task waits for the replica that prefetches for it."""


class Prefetcher:
    """The prefetches of every pool that have not ended."""

    def __init__(self, jobs: Mapping[str, JobRecord], replicas: Replicas, costs: Costs) -> None:
        self._jobs = jobs
        self._replicas = replicas
        self._costs = costs
        self._pools: dict[str, _Pool] = {}

    def changes(self, queues: Mapping[str, ReadyQueue], at_s: float) -> Iterator[tuple[str, Prefetch]]:
        """Yield (replica id, message) to send. queues: the ready tasks of each pool. at_s: Unix time."""
        for name, ready in queues.items():
            if name not in self._pools:
                self._pools[name] = _Pool(name, self._jobs, self._replicas, self._costs, ready)
            yield from self._pools[name].changes(at_s)


class _QueuePrefetch(NamedTuple):
    """The file that a replica prefetches for a queue, and the Unix time since when."""

    file: str
    asked_s: float


class _Candidate(NamedTuple):
    """A replica that may switch to another queue.

    files: model files that it has or will have loaded. has_room: whether it is known to have memory for one more model.
    place: in order, of the first task of its own queues, if it may switch already. done_s: the seconds in which it is
    expected to drain its own queues; 0 for none.
    """

    record: ReplicaRecord
    files: frozenset[str]
    has_room: bool
    place: tuple[float, str, QueueEntry] | None
    done_s: float


class _Pool:
    """The prefetches of one pool: for each replica those of one queue or of one task."""

    def __init__(
        self, name: str, jobs: Mapping[str, JobRecord], replicas: Replicas, costs: Costs, ready: ReadyQueue
    ) -> None:
        self._name = name
        self._jobs = jobs
        self._replicas = replicas
        self._pool = replicas.pool(name)
        self._costs = costs
        self._ready = ready
        # By replica id. A task's prefetch is for a replica that has the file of its queue.
        self._for_queue: dict[str, _QueuePrefetch] = {}
        self._for_task: dict[str, QueueEntry] = {}
        # A small cache: to collect a task's recipes costs a walk over its graph.
        self._recipes_of: dict[QueueEntry, tuple[Recipe, ...]] = {}

    def changes(self, at_s: float) -> Iterator[tuple[str, Prefetch]]:
        """Yield (replica id, message) to send. at_s: Unix time."""
        yield from self._end_queue_prefetches(at_s)
        self._end_task_prefetches()
        if not len(self._ready) or not self._costs.loads(self._name):
            return
        candidates: list[_Candidate] | None = None
        firsts = self._ready.firsts(CANDIDATES)
        for waiting in firsts:
            if not waiting.file:
                continue
            chosen = None
            if self._wants_replica(waiting, at_s):
                if candidates is None:
                    candidates = [*self._candidates(max(self._load_s(first.file) for first in firsts), at_s)]
                chosen = self._replica_for(waiting, candidates)
            if chosen is not None:
                yield from self._prefetch_for_queue(chosen, waiting, at_s)
            else:
                for holder, task in self._lacking(waiting.file):
                    yield from self._prefetch_for_task(holder, task)

    def _prefetch_for_queue(
        self, record: ReplicaRecord, waiting: QueuedTask, at_s: float
    ) -> Iterator[tuple[str, Prefetch]]:
        if recipes := self._recipes(waiting):
            self._for_task.pop(record.info.replica_id, None)
            self._for_queue[record.info.replica_id] = _QueuePrefetch(waiting.file, at_s)
            owed_s = MIN_WORK_PER_LOAD * self._load_s(waiting.file) * record.info.slots
            self._replicas.expect(record, waiting.file, owed_s)
            yield record.info.replica_id, Prefetch(recipes, self._spare(record))

    def _prefetch_for_task(self, record: ReplicaRecord, waiting: QueuedTask) -> Iterator[tuple[str, Prefetch]]:
        if recipes := self._recipes(waiting):
            self._for_task[record.info.replica_id] = waiting.entry
            yield record.info.replica_id, Prefetch(recipes, self._spare(record))

    def _end_queue_prefetches(self, at_s: float) -> Iterator[tuple[str, Prefetch]]:
        """Forget prefetches that are loaded, and cancel those whose queue is empty."""
        for replica_id, queue in [*self._for_queue.items()]:
            record = self._pool.records.get(replica_id)
            if record is None or queue.file in record.loaded:
                self._forget_queue(replica_id)
            elif self._ready.first_of(queue.file) is None:
                self._forget_queue(replica_id)
                yield replica_id, Prefetch()
            # It may have had no room. The wall clock may have been set since.
            elif not 0.0 <= at_s - queue.asked_s < OVERDUE * self._load_s(queue.file):
                self._replicas.wait_no_longer(record)

    def _forget_queue(self, replica_id: str) -> None:
        del self._for_queue[replica_id]
        if (record := self._replicas.get(replica_id)) is not None:
            self._replicas.expect(record, None)

    def _end_task_prefetches(self) -> None:
        for replica_id, entry in [*self._for_task.items()]:
            record = self._pool.records.get(replica_id)
            if record is None or not self._ready.has(entry) or record.loaded.issuperset(self._files(entry)):
                del self._for_task[replica_id]

    def _spare(self, record: ReplicaRecord) -> tuple[str, ...]:
        """Return the files of non-empty queues that a replica has or will have, which a prefetch must not evict."""
        return tuple(sorted(self._ready.model_files & record.files))

    def _recipes(self, waiting: QueuedTask) -> tuple[Recipe, ...]:
        entry = waiting.entry
        if entry not in self._recipes_of:
            if len(self._recipes_of) == 2 * CANDIDATES * NEXT:
                del self._recipes_of[next(iter(self._recipes_of))]
            job = self._jobs[entry.job_id]
            self._recipes_of[entry] = recipes_of(job.plan.graph, job.tasks[entry.task_index].plan.nodes)
        return self._recipes_of[entry]

    def _files(self, entry: QueueEntry) -> tuple[str, ...]:
        return self._jobs[entry.job_id].files.all

    def _load_s(self, file: str) -> float:
        return self._costs.load_s(self._name, file)

    def _wants_replica(self, waiting: QueuedTask, at_s: float) -> bool:
        """Whether one more replica should prefetch for the queue that a task is the first of."""
        file = waiting.file
        if not (slots := self._pool.slots_with(file)):
            return True
        if len(self._for_queue) >= CANDIDATES or any(queue.file == file for queue in self._for_queue.values()):
            return False
        begun_s = free_in_s(file, self._pool, at_s) + (self._ready.waiting_s[file] - waiting.work_s) / slots
        return begun_s >= SPREAD * self._load_s(file)

    def _candidates(self, within_s: float, at_s: float) -> Iterator[_Candidate]:
        """Yield those of the least busy replicas that prefetch for no queue and may switch to one.

        within_s: the longest load in seconds for which a replica is wanted.
        """
        if len(self._for_queue) >= CANDIDATES:
            return
        model_files = self._ready.model_files
        for record in self._pool.open.first(2 * CANDIDATES):
            if record.info.replica_id in self._for_queue:
                continue
            # Before its first model is loaded, it is unknown how much memory that leaves.
            has_room = 0 < len(record.models) < self._pool.most_models
            if record.owed_s > 0.0:
                # Most replicas are excluded here already, by the queues of the tasks that they run.
                continuing = {work.file for work in record.work.values() if work.file in model_files}
                if continuing and (not has_room or self._queues_s(continuing) >= within_s):
                    continue
            files = record.files
            own, place, done_s = model_files & files, None, 0.0
            if own:
                if record.owed_s <= 0.0:
                    firsts = [first for file in own if (first := self._ready.first_of(file)) is not None]
                    place = min(map(self._ready.place, firsts), default=None)
                elif not has_room:
                    continue
                done_s = max(0.0, record.due_s - at_s) + self._queues_s(own)
            yield _Candidate(record, files, has_room, place, done_s)

    def _queues_s(self, files: Iterable[str]) -> float:
        """Return the seconds in which the queues of some files are expected to be drained, one after another.

        Tasks without a file do not count, since every replica can run them.
        """
        waiting_s, slots_with = self._ready.waiting_s, self._pool.slots_with
        return sum([waiting_s[file] / slots for file in files if (slots := slots_with(file))])

    def _replica_for(self, waiting: QueuedTask, candidates: Sequence[_Candidate]) -> ReplicaRecord | None:
        """Return the replica that will probably take a task's queue next, and has room for its model until then.

        It has room if a replica of its pool has had more models loaded at once. For a file that no replica has, it also
        has room if one of its own models is not needed, or if no replica of its pool has evicted weights yet. It has no
        queue of its own, or may switch and has none that comes before in order. A replica that is known to have room
        may also have queues that it will drain before the load ends.
        """
        order, load_s = self._ready.place(waiting), self._load_s(waiting.file)
        loaded = self._pool.slots_with(waiting.file) > 0
        for record, files, has_room, place, done_s in candidates:
            if record.info.replica_id in self._for_queue or waiting.file in files:
                continue
            soon = not done_s or (has_room and done_s < load_s)
            if not soon and (place is None or place < order):
                continue
            if has_room or (not loaded and (not self._pool.crowded or self._unneeded(record))):
                return record
        return None

    def _unneeded(self, record: ReplicaRecord) -> bool:
        """Whether a replica has loaded a file that no queue and none of its tasks needs."""
        needed = (self._ready.model_files & record.loaded).union(*(work.files for work in record.work.values()))
        return not record.loaded <= needed

    def _lacking(self, file: str) -> Iterator[tuple[ReplicaRecord, QueuedTask]]:
        """Yield the next tasks of a queue, each with the replica expected to take it, if that lacks some files.

        Of the replicas with the queue's file that prefetch nothing, the one free first takes the first task.
        """
        holders = [record for record in self._pool.holders(file).first(CANDIDATES) if not self._is_prefetching(record)]
        if not holders:
            return
        tasks = self._ready.nexts_of(file, NEXT)
        if all(len(self._files(task.entry)) == 1 for task in tasks):
            return
        holders.sort(key=lambda record: record.due_s)
        tasks = [task for task in tasks if task.entry not in self._for_task.values()]
        for record, task in zip(holders, tasks, strict=False):
            if not record.files.issuperset(self._files(task.entry)):
                yield record, task

    def _is_prefetching(self, record: ReplicaRecord) -> bool:
        return record.info.replica_id in self._for_queue or record.info.replica_id in self._for_task
