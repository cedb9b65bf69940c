"""Chooses the ready task that starts next, and the replicas of its pool that it may start on.

Tasks go by turns of tenants (`fair_share.py`), then by priority; suspects run apart (`quarantine.py`). Placement is
model affinity with hysteresis. The ready tasks of one model file form a model queue. A replica is warm for a queue if
it has the file's weights loaded, else cold.

1. The first task in order takes a free warm replica, if there is one.
2. A replica keeps serving the queue that it is warm for until it has worked MIN_WORK_PER_LOAD times as long as its load
   took. After that a queue that comes before in order takes it over, if one of these is true:

   | the other queue | the replica switches |
   |---|---|
   | has no warm replica | at once |
   | was passed over | after MIN_WORK_PER_LOAD loads of other work for each slot of the pool |
   | has a tenant that is behind | from MIN_WORK_PER_LOAD loads of device time on |
   | has more work for each slot | if MIN_WORK_PER_LOAD loads more than its own queue would have without it |

3. A free replica without a queue of its own loads for another queue only if the warm replicas of that queue would take
   longer to drain it: than LOAD_IF_WAIT_EXCEEDS loads if one of the free has nothing loaded, than EVICT_IF_WAIT_EXCEEDS
   loads if each would have to evict, else than one load. A task waits for warm replicas at most that long.
4. Where the loading time is unknown or zero, order is strict.

Pure: yields what may start, and the machine starts it before the next one is chosen. Costs a few look-ups, however many
replicas and ready tasks there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import TypeAlias, TypeVar

from serve_app.scheduler.core import quarantine
from serve_app.scheduler.core.costs import Costs
from serve_app.scheduler.core.fair_share import FairShare
from serve_app.scheduler.core.ready_queue import QueuedTask, ReadyQueue
from serve_app.scheduler.core.records import JobRecord, TaskRecord
from serve_app.scheduler.core.replicas import LeastBusy, PoolReplicas, ReplicaRecord, Replicas, RunningWork

T = TypeVar("T")

MIN_WORK_PER_LOAD = 10.0
"""How many times as long as its load took a replica serves a queue before it may switch to another."""
LOAD_IF_WAIT_EXCEEDS, EVICT_IF_WAIT_EXCEEDS = 0.25, 5.0
"""In loading times: a free replica loads a queue's file if its warm replicas would take longer than this for the queue.
The first if a free replica has room for the weights, the second if each would have to evict some."""
CANDIDATES = 8
"""How many queues are considered, in order, and how many replicas of each file."""

Startable: TypeAlias = tuple[JobRecord, TaskRecord, LeastBusy]
"""A task that may start now, and the replicas that it may start on, at least one."""


class Dispatch:
    """The ready tasks of every pool, and the choice among them.

    awaited: whether a running task of the job waits for a value of this task. weight: of a tenant, as FairShare.
    """

    def __init__(
        self,
        jobs: Mapping[str, JobRecord],
        replicas: Replicas,
        costs: Costs,
        awaited: Callable[[JobRecord, TaskRecord], bool],
        weight: Callable[[str], float],
    ) -> None:
        self._jobs = jobs
        self._replicas = replicas
        self._costs = costs
        self._awaited = awaited
        self.shares = _ByPool(lambda _: FairShare(weight))
        self.ready = _ByPool(lambda pool: ReadyQueue(self.shares[pool]))
        """The ready tasks of each pool, without those of suspects."""
        self.suspects = _ByPool(lambda pool: ReadyQueue(self.shares[pool]))
        self.moved = False
        """Whether the queues have changed so that a task may be able to start."""

    def queues(self) -> list[ReadyQueue]:
        """Return every queue of every pool."""
        return [*self.ready.values(), *self.suspects.values()]

    def waiting(self, pool: str) -> int:
        """Return how many of the pool's tasks are ready."""
        return sum(len(queues[pool]) for queues in (self.ready, self.suspects) if pool in queues)

    def waiting_s(self, pool: str) -> dict[str, float]:
        """Return the seconds of one slot that the pool's ready tasks are expected to take, by model file."""
        waiting_s: defaultdict[str, float] = defaultdict(float)
        for queues in (self.ready, self.suspects):
            if pool in queues:
                for file, seconds in queues[pool].waiting_s.items():
                    waiting_s[file] += seconds
        return dict(waiting_s)

    def reserved(self, pool: str) -> int:
        """Return the free slots that the pool's suspects keep from other jobs, or will on the replica one waits for.

        Counted as demand, they start a replica for a suspect, which else waits until another job's run has ended.
        """
        replicas = self._replicas.pool(pool)
        kept = list(replicas.quarantined.values())
        free = sum(record.info.slots - len(record.running) for record in kept)
        first = self.suspects[pool].first() if pool in self.suspects else None
        if first is None or any(record.quarantined == first.entry.job_id for record in kept):
            return free
        return free + max((record.info.slots for record in replicas.records.values()), default=1) - 1

    def put(self, job: JobRecord, task: TaskRecord) -> None:
        """Queue a ready task. Call it again when a running task may have begun to wait for it."""
        pool = task.plan.pool
        queue = (self.suspects if job.suspect else self.ready)[pool]
        file, work_s = self._queue_of(pool, job, task)
        self.moved = True
        queue.push(job, task, awaited=self._awaited(job, task), file=file, work_s=work_s)

    def forget(self, job: JobRecord, task: TaskRecord) -> None:
        """Remove a task that will not start."""
        self.moved = True
        for queues in (self.ready, self.suspects):
            if task.plan.pool in queues:
                queues[task.plan.pool].remove((job.row.job_id, task.plan.index))

    def start(self, job: JobRecord, task: TaskRecord, replica: ReplicaRecord, at_s: float) -> RunningWork:
        """Charge a task's tenant its expected device time, and return the work as its replica's record keeps it.

        at_s: Unix time.
        """
        pool, there = replica.info.pool, replica.files
        file, work_s = self._queue_of(pool, job, task)
        # In a pool that loads nothing, a task does not show what its replica has loaded.
        files = job.files.all if self._costs.loads(pool) else ()
        owed_s = 0.0 if file in there else MIN_WORK_PER_LOAD * self._costs.load_s(pool, file) * replica.info.slots
        charged_s = self.shares[pool].start(job.tenant, self.expected_s(pool, job, task))
        due_s = at_s + work_s + sum(self._costs.load_s(pool, name) for name in files if name not in replica.loaded)
        return RunningWork(file, task.steps, work_s, files, owed_s, job.tenant, charged_s, due_s, job.owner)

    def expected_s(self, pool: str, job: JobRecord, task: TaskRecord) -> float:
        """Return the device time in seconds that a task is expected to take in a pool."""
        return task.steps * self._costs.share_s(pool, self._costs.heaviest(pool, job.files.whole))

    def slot_s(self, job: JobRecord, task: TaskRecord) -> float:
        """Return the seconds that a task is expected to take a slot of its pool."""
        return self._queue_of(task.plan.pool, job, task)[1]

    def end(self, pool: str, work: RunningWork, had_s: float) -> None:
        """Correct a tenant's charge for a task by its measured device time. had_s: that time in seconds."""
        self.shares[pool].end(work.tenant, work.charged_s, had_s)

    def _queue_of(self, pool: str, job: JobRecord, task: TaskRecord) -> tuple[str, float]:
        """Return the model file of a task's queue, and the seconds that it is expected to take a slot."""
        file = self._costs.heaviest(pool, job.files.whole)
        return file, task.steps * self._costs.step_s(pool, file)

    def startable(self, at_s: float) -> Iterator[Startable]:
        """Yield each task to start, until no pool has both a task and a replica for it. at_s: Unix time."""
        progress = self.moved or self._replicas.moved
        while progress:
            progress = False
            names = {**self.suspects, **self.ready}
            # In every pool first: a suspect that spans several pools may wait for a replica kept in another one.
            for name in names:
                quarantine.end(self._replicas.pool(name), self._replicas)
            for name in names:
                pool = self._replicas.pool(name)
                progress |= yield from self._of_suspects(name, pool)
                progress |= yield from self._of_others(name, pool, at_s)
        self.moved = self._replicas.moved = False

    def _of_others(self, name: str, pool: PoolReplicas, at_s: float) -> Generator[Startable, None, bool]:
        """Yield tasks of jobs that are no suspects; return whether any left the queue.

        A task that a running task waits for may exceed the slots: otherwise tasks that wait for it could take every
        slot. For the same reason it may start on a replica that is being cleared for a suspect.
        """
        ready, progress = self.ready[name], False
        while (first := ready.first()) is not None:
            pair: tuple[QueuedTask, LeastBusy] | None
            if first.entry.awaited:
                pair = first, quarantine.open_to_awaited(pool, self._jobs)
            else:
                pair = self._pair(first, name, pool, at_s)
            if pair is None or not len(pair[1]):
                break
            waiting, among = pair
            job = self._jobs[waiting.entry.job_id]
            task = job.tasks[waiting.entry.task_index]
            progress = True
            if job.suspect or (waiting.entry.awaited and not self._awaited(job, task)):
                ready.remove(waiting.entry.key)
                self.put(job, task)
            else:
                ready.take(waiting)
                yield job, task, among
        return progress

    def _pair(
        self, first: QueuedTask, name: str, pool: PoolReplicas, at_s: float
    ) -> tuple[QueuedTask, LeastBusy] | None:
        """Return a task of the pool and free replicas for it; None if every task should wait."""
        if not len(pool.free):
            return None
        if len(warm := pool.free_with(first.file)):
            return first, warm
        ready = self.ready[name]
        record, own = self._with_queue(ready, pool)
        fewest = pool.fewest_models(CANDIDATES)
        for waiting in ready.firsts(CANDIDATES):
            if waiting is own:
                break
            if len(warm := pool.free_with(waiting.file)):
                return waiting, warm
            if record is None or own is None:
                if not self._waits_for_warm(waiting, name, pool, fewest, at_s):
                    return waiting, pool.free
            elif ready.place(waiting) < ready.place(own) and self._switches(record, own, waiting, name, pool):
                return waiting, LeastBusy([record])
        return None if record is None or own is None else (own, LeastBusy([record]))

    def _with_queue(self, ready: ReadyQueue, pool: PoolReplicas) -> tuple[ReplicaRecord | None, QueuedTask | None]:
        """Return a replica that has become free lately and is warm for a queue, and the first task of that queue.

        A queue that it prefetches for counts as its own only if it has no other.
        """
        while pool.changed:
            record = pool.changed[next(reversed(pool.changed))]
            own = ready.model_files & record.ready or ready.model_files & record.prefetching
            firsts = [waiting for file in own if (waiting := ready.first_of(file)) is not None]
            if firsts:
                return record, min(firsts, key=ready.place)
            del pool.changed[record.info.replica_id]
        return None, None

    def _switches(
        self, record: ReplicaRecord, own: QueuedTask, other: QueuedTask, name: str, pool: PoolReplicas
    ) -> bool:
        """Whether a replica leaves its own queue to load for another, whose first task precedes its own: rule 2."""
        load_s = self._costs.load_s(name, other.file)
        if load_s == 0.0:
            return True
        if record.owed_s > 0.0:
            return False
        ready, slots, min_work_s = self.ready[name], pool.slots_with(other.file), MIN_WORK_PER_LOAD * load_s
        if not slots or ready.overtaken_s(other) >= min_work_s * pool.slots:
            return True
        if self.shares[name].behind_s(other.tenant, own.tenant) >= min_work_s:
            return True
        left = pool.slots_with(own.file) - record.info.slots
        return left > 0 and ready.waiting_s[other.file] / slots > ready.waiting_s[own.file] / left + min_work_s

    def _waits_for_warm(self, waiting: QueuedTask, name: str, pool: PoolReplicas, fewest: int, at_s: float) -> bool:
        """Whether a task waits for a busy warm replica rather than have a free one load its file: rule 3.

        fewest: the lowest number of models that one of the free replicas has loaded.
        """
        if not (slots := pool.slots_with(waiting.file)):
            return False
        load_s, queue_s = self._costs.load_s(name, waiting.file), self.ready[name].waiting_s[waiting.file] / slots
        if fewest >= pool.most_models:
            worth_s = EVICT_IF_WAIT_EXCEEDS * load_s
        elif not fewest:
            worth_s = LOAD_IF_WAIT_EXCEEDS * load_s
        else:
            worth_s = load_s
            rest_s = queue_s - waiting.work_s / slots
            # Each free replica could take a part of the rest.
            queue_s = free_in_s(waiting.file, pool, at_s) + len(pool.free) * rest_s
        if queue_s >= worth_s:
            return False
        if waiting.deferred_s is None:
            waiting.deferred_s = at_s
        # The wall clock may have been set back or forth since.
        return 0.0 <= at_s - waiting.deferred_s < worth_s

    def _of_suspects(self, name: str, pool: PoolReplicas) -> Generator[Startable, None, bool]:
        """Yield tasks of suspects with a replica for each job alone; return whether any left the queue."""
        suspects, progress = self.suspects[name], False
        while (waiting := suspects.first()) is not None:
            job = self._jobs[waiting.entry.job_id]
            task = job.tasks[waiting.entry.task_index]
            rival = self.ready[name].first()
            # A value that a suspect's running task waits for is always made: no other job runs on its replica.
            awaited = self._awaited(job, task)
            if rival is not None and not awaited and self._outranks(name, rival, job):
                break
            replica = quarantine.keep_for(job, pool, self._replicas, self._jobs)
            if replica is None or not replica.runs_only(job.row.job_id):
                break
            if replica.running and len(replica.running) >= replica.info.slots and not awaited:
                break
            suspects.take(waiting)
            progress = True
            yield job, task, LeastBusy([replica])
        return progress

    def _outranks(self, pool: str, waiting: QueuedTask, job: JobRecord) -> bool:
        """Whether a task comes before those of a suspect in order."""
        time = self.shares[pool].time
        its_turn = (time(waiting.tenant), waiting.tenant, waiting.entry.priority)
        return its_turn < (time(job.tenant), job.tenant, job.priority)


def free_in_s(file: str, pool: PoolReplicas, at_s: float) -> float:
    """Return the seconds until one of the replicas with a file is expected to be free. at_s: Unix time."""
    due_s = min((record.due_s for record in pool.holders(file).first(CANDIDATES)), default=at_s)
    return max(0.0, due_s - at_s)


class _ByPool(dict[str, T]):
    """One value for each pool, made on first access."""

    def __init__(self, make: Callable[[str], T]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, pool: str) -> T:
        made = self[pool] = self._make(pool)
        return made
