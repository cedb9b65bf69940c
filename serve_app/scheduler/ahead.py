"""What replicas are told to load ahead: the models of what they will take next, while they work.

A line that no replica holds the file of is going to be loaded for by one that has done its own. That one is told as
soon as the line is among the next of its pool, and counts as one that holds the file from then on. It then works with
what it has as long as after a load. Pure; it looks at a few lines and replicas, however many there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from serve_app.scheduler.costs import Costs
from serve_app.scheduler.dispatch import PATIENCE
from serve_app.scheduler.messages import Prefetch
from serve_app.scheduler.model_files import models_of
from serve_app.scheduler.ready_queue import ReadyQueue, Waiting
from serve_app.scheduler.records import JobRecord
from serve_app.scheduler.replicas import PoolReplicas, ReplicaRecord, Replicas

LOOKED_AT = 4
"""How many lines of a pool are looked at, in order, and how many of its replicas are told something at once."""


class Ahead:
    """The models that replicas have been told of and do not hold yet, one file a replica."""

    def __init__(self, jobs: Mapping[str, JobRecord], replicas: Replicas, costs: Costs) -> None:
        self._jobs = jobs
        self._replicas = replicas
        self._costs = costs
        self._told: defaultdict[str, dict[str, str]] = defaultdict(dict)

    def changes(self, queues: Mapping[str, ReadyQueue]) -> Iterator[tuple[str, Prefetch]]:
        """Yield what replicas are to be told, by their ids. queues: the ready tasks of each pool."""
        for name, ready in queues.items():
            if self._told[name] or (len(ready) and self._costs.loads(name)):
                yield from self._of_pool(name, self._replicas.pool(name), ready)

    def _of_pool(self, name: str, pool: PoolReplicas, ready: ReadyQueue) -> Iterator[tuple[str, Prefetch]]:
        told = self._told[name]
        for replica_id, file in [*told.items()]:
            record = pool.records.get(replica_id)
            if record is None or file in record.held:
                self._over(told, replica_id)
            elif ready.first_of(file) is None:
                self._over(told, replica_id)
                yield replica_id, Prefetch()
        for waiting in ready.firsts(LOOKED_AT):
            if len(told) == LOOKED_AT:
                return
            if not waiting.file or pool.slots_with(waiting.file):
                continue
            record = self._taker(waiting, pool, ready, told)
            if record is not None and (models := self._models(waiting)):
                told[record.info.replica_id] = waiting.file
                owed_s = PATIENCE * self._costs.load_s(name, waiting.file) * record.info.slots
                self._replicas.expect(record, waiting.file, owed_s)
                spare = sorted(file for file in record.files if ready.first_of(file) is not None)
                yield record.info.replica_id, Prefetch(models, tuple(spare))

    def _over(self, told: dict[str, str], replica_id: str) -> None:
        """Forget what a replica was told."""
        del told[replica_id]
        if (record := self._replicas.get(replica_id)) is not None:
            self._replicas.expect(record, None)

    def _models(self, waiting: Waiting) -> tuple[str, ...]:
        job = self._jobs[waiting.entry.job_id]
        return models_of(job.plan.graph, job.tasks[waiting.entry.task_index].plan.nodes)

    def _taker(
        self, waiting: Waiting, pool: PoolReplicas, ready: ReadyQueue, told: Mapping[str, str]
    ) -> ReplicaRecord | None:
        """Return a replica that is likely to take a task's line next, and to have room for its model meanwhile.

        It has no line of its own, or only such as come later in order, and has worked as long as it should with what
        it loaded. None of its pool has let weights go for others yet, one has held more files than it does, or it holds
        some that nobody needs.
        """

        def turns(record: ReplicaRecord) -> bool:
            own = {file: first for file in record.files if (first := ready.first_of(file)) is not None}
            if own and (
                record.owed_s > 0.0 or any(ready.place(first) < ready.place(waiting) for first in own.values())
            ):
                return False
            used = own.keys() | {file for work in record.work.values() for file in work.files}
            return not pool.crowded or len(record.held) < pool.most_files or not record.held <= used

        there = (record for record in pool.open.first(2 * LOOKED_AT) if record.info.replica_id not in told)
        return next(filter(turns, there), None)
