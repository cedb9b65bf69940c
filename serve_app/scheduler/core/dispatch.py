"""Which ready task starts next, and on which of its pool's replicas it may: by turns of tenants (`fair_share.py`), then
by priority, suspects apart.

Weights are worth waiting for. The tasks of a model file form a line, in that order. A task that is first in
order takes a free replica that holds its file. Where none does:
1. A replica goes on with the line of what it holds until it has worked PATIENCE times as long as it loaded. From then
   on it is given to a line that no replica holds the file of; to one whose tenant is behind that of its own line by as
   much as it is owed for loading; or to one that has so much more to do for each of its slots that it has still more
   once the replica is gone over, and has loaded.
2. A replica without a line of its own loads for another, unless the replicas that hold the file are expected to have
   done all of that line within WORTH times as long as loading takes; they are waited for at most so long. One that has
   room beside what it holds waits also where the first of those is due before loading would be over; the longer the
   rest of the line, and the more replicas are free, the sooner that must be. Where each would give up other weights,
   which may have to be loaded again, it is EVICT_IF_WAIT_EXCEEDS times as long.
Where loading takes no time, as far as is known, order is strict.

Says only what may start; the machine starts it, and what that changes counts for whatever is said next. However many
replicas and ready tasks there are, it looks at a few.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import TypeAlias, TypeVar

from serve_app.scheduler.core import quarantine
from serve_app.scheduler.core.costs import Costs
from serve_app.scheduler.core.fair_share import FairShare
from serve_app.scheduler.core.ready_queue import ReadyQueue, Waiting
from serve_app.scheduler.core.records import JobRecord, TaskRecord
from serve_app.scheduler.core.replicas import LeastBusy, PoolReplicas, ReplicaRecord, Replicas, Work

T = TypeVar("T")

MIN_WORK_PER_LOAD = 10.0
"""How many times as long as it loaded a replica works before it has to load something else, while tasks are there."""
LOAD_IF_WAIT_EXCEEDS, EVICT_IF_WAIT_EXCEEDS = 0.25, 5.0
"""How many times as long as loading takes a line may keep those that hold its file before a free replica loads it too:
where one has room for more weights; where each would give up some for them."""
LOOKED_AT = 8
"""How many lines are looked at, in order, for one that should not wait, and how many replicas that hold its file."""

Start: TypeAlias = tuple[JobRecord, TaskRecord, LeastBusy]
"""A task that may start now, and the replicas that it may start on; never none."""


class Dispatch:
    """The ready tasks of every pool.

    awaited: whether a running task of the job waits for what a task of it makes. weight: of a tenant, as FairShare.
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
        self._shares = _ByPool(lambda _: FairShare(weight))
        self.ready = _ByPool(lambda pool: ReadyQueue(self._shares[pool]))
        """The ready tasks of each pool, but for suspects'."""
        self._suspects = _ByPool(lambda pool: ReadyQueue(self._shares[pool]))
        self.moved = False
        """Whether anything has changed in the queues that a start may follow from."""

    def queues(self) -> list[ReadyQueue]:
        """Return every queue there is."""
        return [*self.ready.values(), *self._suspects.values()]

    def waiting(self, pool: str) -> int:
        """Return how many of the pool's tasks are ready."""
        return sum(len(queues[pool]) for queues in (self.ready, self._suspects) if pool in queues)

    def waiting_s(self, pool: str) -> dict[str, float]:
        """Return how long the pool's ready tasks are expected to take a slot, by the model file they are served by."""
        waiting_s: defaultdict[str, float] = defaultdict(float)
        for queues in (self.ready, self._suspects):
            if pool in queues:
                for file, seconds in queues[pool].waiting_s.items():
                    waiting_s[file] += seconds
        return dict(waiting_s)

    def put(self, job: JobRecord, task: TaskRecord) -> None:
        """Queue a ready task; again where it may be awaited by now."""
        pool = task.plan.pool
        queue = (self._suspects if job.suspect else self.ready)[pool]
        file, work_s = self._line(pool, job, task)
        self.moved = True
        queue.push(job, task, awaited=self._awaited(job, task), file=file, work_s=work_s)

    def forget(self, job: JobRecord, task: TaskRecord) -> None:
        """Take a task out that will not start."""
        self.moved = True
        for queues in (self.ready, self._suspects):
            if task.plan.pool in queues:
                queues[task.plan.pool].remove((job.row.job_id, task.plan.index))

    def start(self, job: JobRecord, task: TaskRecord, replica: ReplicaRecord, at_s: float) -> Work:
        """Charge a task's tenant what it is expected to take; return what it will be to the replica it is given to.

        at_s: Unix time.
        """
        pool, there = replica.info.pool, replica.files
        file, work_s = self._line(pool, job, task)
        # Where none is ever loaded, a task says nothing of what its replica holds.
        files = job.files.all if self._costs.loads(pool) else ()
        owed_s = 0.0 if file in there else MIN_WORK_PER_LOAD * self._costs.load_s(pool, file) * replica.info.slots
        charged_s = self._shares[pool].start(job.tenant, self.expected_s(pool, job, task))
        due_s = at_s + work_s + sum(self._costs.load_s(pool, name) for name in files if name not in replica.held)
        return Work(file, task.steps, work_s, files, owed_s, job.tenant, charged_s, due_s, job.owner)

    def expected_s(self, pool: str, job: JobRecord, task: TaskRecord) -> float:
        """Return how long a task is expected to have a device of a pool."""
        return task.steps * self._costs.share_s(pool, self._costs.heaviest(pool, job.files.whole))

    def end(self, pool: str, work: Work, had_s: float) -> None:
        """Charge a task's tenant what it did take. had_s: how long it has had its replica's device."""
        self._shares[pool].end(work.tenant, work.charged_s, had_s)

    def _line(self, pool: str, job: JobRecord, task: TaskRecord) -> tuple[str, float]:
        """Return the model file that a task is served by, and how long it is expected to take a slot."""
        file = self._costs.heaviest(pool, job.files.whole)
        return file, task.steps * self._costs.step_s(pool, file)

    def startable(self, at_s: float) -> Iterator[Start]:
        """Yield what to start, until a pool has no replica or no task for another. at_s: Unix time."""
        progress = self.moved or self._replicas.moved
        while progress:
            progress = False
            names = {**self._suspects, **self.ready}
            # In every pool first: what is kept in one may be what a suspect waits for that spans several.
            for name in names:
                quarantine.end(self._replicas.pool(name), self._replicas)
            for name in names:
                pool = self._replicas.pool(name)
                progress |= yield from self._of_suspects(name, pool)
                progress |= yield from self._of_others(name, pool, at_s)
        self.moved = self._replicas.moved = False

    def _of_others(self, name: str, pool: PoolReplicas, at_s: float) -> Generator[Start, None, bool]:
        """Yield what may start; return whether the queue is shorter.

        A task that a running task waits for may exceed the slots: otherwise every slot could be held by tasks that wait
        for it. For the same reason it is let into quarantine where the suspect waits for a replica to clear.
        """
        ready, progress = self.ready[name], False
        while (first := ready.first()) is not None:
            pair: tuple[Waiting, LeastBusy] | None
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

    def _pair(self, first: Waiting, name: str, pool: PoolReplicas, at_s: float) -> tuple[Waiting, LeastBusy] | None:
        """Return a task of the pool and free replicas for it; None if every task should wait. first: in order."""
        if not len(pool.free):
            return None
        if len(warm := pool.free_with(first.file)):
            return first, warm
        ready = self.ready[name]
        record, own = self._with_line(ready, pool)
        fewest = pool.fewest_models(LOOKED_AT)
        for waiting in ready.firsts(LOOKED_AT):
            if waiting is own:
                break
            if len(warm := pool.free_with(waiting.file)):
                return waiting, warm
            if record is None or own is None:
                if not self._waits(waiting, name, pool, fewest, at_s):
                    return waiting, pool.free
            elif ready.place(waiting) < ready.place(own) and self._goes_over(record, own, waiting, name, pool):
                return waiting, LeastBusy([record])
        return None if record is None or own is None else (own, LeastBusy([record]))

    def _with_line(self, ready: ReadyQueue, pool: PoolReplicas) -> tuple[ReplicaRecord | None, Waiting | None]:
        """Return a replica that has become free lately and need load nothing for some line, and that line's first.

        A line that it loads for ahead is its own only while it has no other.
        """
        while pool.changed:
            record = pool.changed[next(reversed(pool.changed))]
            own = ready.lines & record.ready or ready.lines & record.ahead
            firsts = [waiting for file in own if (waiting := ready.first_of(file)) is not None]
            if firsts:
                return record, min(firsts, key=ready.place)
            del pool.changed[record.info.replica_id]
        return None, None

    def _goes_over(self, record: ReplicaRecord, own: Waiting, other: Waiting, name: str, pool: PoolReplicas) -> bool:
        """Whether a replica leaves its own line to load for another, whose first task comes before in order."""
        load_s = self._costs.load_s(name, other.file)
        if load_s == 0.0:
            return True
        if record.owed_s > 0.0:
            return False
        ready, slots, patience_s = self.ready[name], pool.slots_with(other.file), MIN_WORK_PER_LOAD * load_s
        if not slots or ready.overtaken_s(other) >= patience_s * pool.slots:
            return True
        if self._shares[name].behind_s(other.tenant, own.tenant) >= patience_s:
            return True
        left = pool.slots_with(own.file) - record.info.slots
        return left > 0 and ready.waiting_s[other.file] / slots > ready.waiting_s[own.file] / left + patience_s

    def _waits(self, waiting: Waiting, name: str, pool: PoolReplicas, fewest: int, at_s: float) -> bool:
        """Whether a task waits for a busy replica that holds its file rather than have a free one load it.

        fewest: of how many models a free one holds weights at least.
        """
        if not (slots := pool.slots_with(waiting.file)):
            return False
        load_s, line_s = self._costs.load_s(name, waiting.file), self.ready[name].waiting_s[waiting.file] / slots
        if fewest >= pool.most_models:
            worth_s = EVICT_IF_WAIT_EXCEEDS * load_s
        elif not fewest:
            worth_s = LOAD_IF_WAIT_EXCEEDS * load_s
        else:
            worth_s = load_s
            rest_s = line_s - waiting.work_s / slots
            # Each of those that are free could take some of the rest.
            line_s = free_in_s(waiting.file, pool, at_s) + len(pool.free) * rest_s
        if line_s >= worth_s:
            return False
        if waiting.held_s is None:
            waiting.held_s = at_s
        # The clock may be set meanwhile.
        return 0.0 <= at_s - waiting.held_s < worth_s

    def _of_suspects(self, name: str, pool: PoolReplicas) -> Generator[Start, None, bool]:
        """Yield suspects with a replica of their own, and keep replicas clear for those that wait; return as above."""
        suspects, progress = self._suspects[name], False
        while (waiting := suspects.first()) is not None:
            job = self._jobs[waiting.entry.job_id]
            task = job.tasks[waiting.entry.task_index]
            rival = self.ready[name].first()
            # What a suspect's running task waits for is served in any case: nobody else is where that one runs.
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

    def _outranks(self, pool: str, waiting: Waiting, job: JobRecord) -> bool:
        """Whether a task is to be served before those of a suspect."""
        time = self._shares[pool].time
        its_turn = (time(waiting.tenant), waiting.tenant, waiting.entry.priority)
        return its_turn < (time(job.tenant), job.tenant, job.priority)


def free_in_s(file: str, pool: PoolReplicas, at_s: float) -> float:
    """Return in how long the first of those that hold a file is expected to be free. at_s: Unix time."""
    due_s = min((record.due_s for record in pool.holders(file).first(LOOKED_AT)), default=at_s)
    return max(0.0, due_s - at_s)


class _ByPool(dict[str, T]):
    """What each pool has, made when it is first asked for."""

    def __init__(self, make: Callable[[str], T]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, pool: str) -> T:
        made = self[pool] = self._make(pool)
        return made
