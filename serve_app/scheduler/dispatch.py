"""Which ready task starts next, and on which of its pool's replicas it may: by priority, suspects apart.

Says only what may start; the machine starts it, and what that changes counts for whatever is said next.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import TypeAlias

from serve_app.scheduler import quarantine
from serve_app.scheduler.placement import ReplicaRecord
from serve_app.scheduler.ready_queue import Entry, ReadyQueue
from serve_app.scheduler.records import JobRecord, TaskRecord

Start: TypeAlias = tuple[JobRecord, TaskRecord, list[ReplicaRecord]]
"""A task that may start now, and the replicas that it may start on; never none."""


class Dispatch:
    """The ready tasks of every pool. awaited: whether a running task of the job waits for what a task of it makes."""

    def __init__(
        self,
        jobs: Mapping[str, JobRecord],
        replicas: Mapping[str, ReplicaRecord],
        awaited: Callable[[JobRecord, TaskRecord], bool],
    ) -> None:
        self._jobs = jobs
        self._replicas = replicas
        self._awaited = awaited
        self._ready: defaultdict[str, ReadyQueue] = defaultdict(ReadyQueue)
        self._suspects: defaultdict[str, ReadyQueue] = defaultdict(ReadyQueue)

    def queues(self) -> list[ReadyQueue]:
        """Return every queue there is."""
        return [*self._ready.values(), *self._suspects.values()]

    def put(self, job: JobRecord, task: TaskRecord) -> None:
        """Queue a ready task; again where it may be awaited by now."""
        queue = (self._suspects if job.suspect else self._ready)[task.plan.pool]
        queue.push(job, task, awaited=self._awaited(job, task))

    def startable(self) -> Iterator[Start]:
        """Yield what to start, first by priority, until a pool has no free replica or no ready task."""
        progress = True
        while progress:
            progress = False
            for pool in {**self._suspects, **self._ready}:
                replicas = [r for r in self._replicas.values() if r.info.pool == pool]
                quarantine.end(replicas)
                progress |= yield from self._of_suspects(pool, replicas)
                progress |= yield from self._of_others(pool, replicas)

    def _of_others(self, pool: str, replicas: Sequence[ReplicaRecord]) -> Generator[Start, None, bool]:
        """Yield what may start; return whether the queue is shorter.

        A task that a running task waits for may exceed the slots: otherwise every slot could be held by tasks that wait
        for it. For the same reason it is let into quarantine where the suspect waits for a replica to clear.
        """
        ready, progress = self._ready[pool], False
        while entry := self._first(ready):
            free = [r for r in replicas if r.free]
            if entry.awaited:
                free = quarantine.open_to_awaited(replicas, self._jobs)
            if not free:
                break
            ready.pop()
            progress = True
            job = self._jobs[entry.job_id]
            task = job.tasks[entry.task_index]
            if job.suspect or (entry.awaited and not self._awaited(job, task)):
                self.put(job, task)
            else:
                yield job, task, free
        return progress

    def _of_suspects(self, pool: str, replicas: Sequence[ReplicaRecord]) -> Generator[Start, None, bool]:
        """Yield suspects with a replica of their own, and keep replicas clear for those that wait; return as above."""
        suspects, progress = self._suspects[pool], False
        while entry := self._first(suspects):
            job = self._jobs[entry.job_id]
            task = job.tasks[entry.task_index]
            rival = self._first(self._ready[pool])
            if rival is not None and rival.priority < job.priority:
                break
            replica = quarantine.keep_for(job, replicas, self._replicas.values(), self._jobs)
            if replica is None or not replica.runs_only(entry.job_id):
                break
            if replica.running and len(replica.running) >= replica.info.slots and not self._awaited(job, task):
                break
            suspects.pop()
            progress = True
            yield job, task, [replica]
        return progress

    def _first(self, queue: ReadyQueue) -> Entry | None:
        """Return the first entry whose task is ready still; those before it are dropped."""
        while entry := queue.first():
            job = self._jobs.get(entry.job_id)
            if job is not None and job.tasks[entry.task_index].state == "ready":
                return entry
            queue.pop()
        return None
