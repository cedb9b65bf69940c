"""The registered replicas, with indexes by which one is found without a scan.

The one place that changes a `ReplicaRecord`, so the indexes stay consistent. Decides nothing.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import NamedTuple

from serve_app.graph.plan import TaskId
from serve_app.scheduler.core.backoff import Owner
from serve_app.scheduler.core.model_files import files_in
from serve_app.scheduler.protocol.messages import ReplicaInfo


class RunningWork(NamedTuple):
    """A running task as its replica's record keeps it. file: the model file of its queue, "" for none.

    work_s: the seconds that it is expected to take a slot. files: the model files that it names, which its replica has
    or will have loaded before another task starts there; () in a pool that loads nothing. owed_s: how long its replica
    should work after the loading for it. charged_s: the device time charged in advance. due_s: the Unix time at which
    it is expected to end. owner: who is charged if it ends its replica.
    """

    file: str
    steps: int
    work_s: float
    files: tuple[str, ...]
    owed_s: float
    tenant: str
    charged_s: float
    due_s: float
    owner: Owner


@dataclass(slots=True)
class ReplicaRecord:
    """A replica as the scheduler knows it. recipes: the weights it has loaded, e.g. "checkpoints/a.safetensors".

    slotless: those of the running tasks that have released their slot. loaded: the model files of the recipes; models:
    those without LoRAs. owed_s: the seconds that it should still work before it loads for another queue. prefetching:
    the file that it prefetches; overdue: whether tasks start without waiting for that. quarantined: the job that has it
    alone. draining: why it takes no more tasks, "" if it does; drained: whether an operator wants that. lingering:
    owners whose nodes run on after their tasks, and who have not been charged for that. host: the name of its host.
    """

    info: ReplicaInfo
    host: str = ""
    running: set[TaskId] = field(default_factory=set)
    slotless: set[TaskId] = field(default_factory=set)
    recipes: tuple[str, ...] = ()
    loaded: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()
    work: dict[TaskId, RunningWork] = field(default_factory=dict)
    owed_s: float = 0.0
    prefetching: frozenset[str] = frozenset()
    overdue: bool = False
    quarantined: str | None = None
    draining: str = ""
    drained: bool = False
    lingering: frozenset[Owner] = frozenset()

    @property
    def hosts(self) -> frozenset[str]:
        """The names of its host and of its ranks' hosts."""
        return frozenset({self.host, *self.info.rank_hosts})

    @property
    def takes_tasks(self) -> bool:
        """Whether it takes more tasks, be it of one job."""
        return not (self.draining or self.drained)

    @property
    def is_open(self) -> bool:
        """Whether it takes tasks of any job."""
        return self.quarantined is None and self.takes_tasks

    @property
    def free(self) -> bool:
        """Whether it can take one more task of any job."""
        return self.is_open and len(self.running) - len(self.slotless) < self.info.slots

    @property
    def occupied(self) -> int:
        """The number of slots it needs; at least one while any task runs, so that it is not scaled down."""
        return len(self.running) - len(self.slotless) or min(1, len(self.running))

    @property
    def ready(self) -> frozenset[str]:
        """The model files that it has loaded, or will have before another task starts there."""
        there = self.loaded | self.prefetching if self.overdue else self.loaded
        return there.union(*(work.files for work in self.work.values()))

    @property
    def files(self) -> frozenset[str]:
        """The model files that it has loaded or will have."""
        return self.ready | self.prefetching

    @property
    def due_s(self) -> float:
        """The Unix time at which the first of its tasks is expected to end; 0 if it runs none."""
        return min([work.due_s for work in self.work.values()], default=0.0)

    def runs_only(self, job_id: str) -> bool:
        """Whether it runs no task of another job."""
        return all(task_id.job_id == job_id for task_id in self.running)


class LeastBusy:
    """Replicas in order of the tasks that they run; of equally busy ones, the longest unchanged first."""

    def __init__(self, records: Iterable[ReplicaRecord] = ()) -> None:
        # Not dicts: the first key of one whose first keys have been deleted is found by a scan over their places.
        self._levels: list[OrderedDict[str, ReplicaRecord]] = []
        self._level: dict[str, int] = {}
        for record in records:
            self.put(record)

    def __len__(self) -> int:
        return len(self._level)

    def __iter__(self) -> Iterator[ReplicaRecord]:
        return (record for level in self._levels for record in level.values())

    def get(self, replica_id: str) -> ReplicaRecord | None:
        """Return a contained replica, or None."""
        level = self._level.get(replica_id)
        return None if level is None else self._levels[level][replica_id]

    def put(self, record: ReplicaRecord) -> None:
        """Add a replica that is not contained."""
        level = len(record.running)
        while len(self._levels) <= level:
            self._levels.append(OrderedDict())
        self._levels[level][record.info.replica_id] = record
        self._level[record.info.replica_id] = level

    def discard(self, replica_id: str) -> None:
        """Remove a replica if it is contained."""
        level = self._level.pop(replica_id, None)
        if level is not None:
            del self._levels[level][replica_id]

    def first(self, count: int) -> list[ReplicaRecord]:
        """Return the first replicas in order, at most `count`."""
        return list(islice(self, count))


class _Filed(NamedTuple):
    """The values of a replica that its place in the indexes depends on."""

    running: int
    occupied: int
    free: bool
    quarantined: bool
    is_open: bool
    ready: frozenset[str]
    files: frozenset[str]


class PoolReplicas:
    """The replicas of one pool. slots: the tasks that they can run at once. occupied: the slots in use.

    open: those that take tasks of any job. free: those that can take one more. changed: those that have become free, or
    have loaded or evicted weights while free, until removed by the caller. most_models: the most models that one has
    had loaded at once. crowded: whether one has evicted weights for others, so that it is known how many fit.
    """

    def __init__(self) -> None:
        self.records: dict[str, ReplicaRecord] = {}
        self.slots = 0
        self.occupied = 0
        self.most_models = 0
        self.crowded = False
        self.open = LeastBusy()
        self.free = LeastBusy()
        self.quarantined: dict[str, ReplicaRecord] = {}
        self.changed: OrderedDict[str, ReplicaRecord] = OrderedDict()
        self._free_with: dict[str, LeastBusy] = {}
        self._holders: dict[str, LeastBusy] = {}
        self._slots_with: defaultdict[str, int] = defaultdict(int)
        self._filed: dict[str, _Filed] = {}

    def free_with(self, file: str) -> LeastBusy:
        """Return the free replicas that have loaded a model file; one that still prefetches it is not among them."""
        return self._free_with.get(file, _NONE)

    def holders(self, file: str) -> LeastBusy:
        """Return the open replicas that have loaded a model file or will have."""
        return self._holders.get(file, _NONE)

    def of_suspects(self) -> Iterator[ReplicaRecord]:
        """Yield the quarantined replicas that take tasks of their job."""
        return (record for record in self.quarantined.values() if record.takes_tasks)

    def slots_with(self, file: str) -> int:
        """Return the slots of the replicas that have loaded a model file or will have."""
        return self._slots_with.get(file, 0)

    def fewest_models(self, looked_at: int) -> int:
        """Return the lowest number of loaded models among the first `looked_at` free replicas."""
        return min((len(record.models) for record in self.free.first(looked_at)), default=0)

    def file(self, record: ReplicaRecord) -> bool:
        """Update the indexes for a replica; return whether that changed them."""
        name = record.info.replica_id
        ready = record.ready
        files = ready | record.prefetching
        now = _Filed(
            len(record.running),
            record.occupied,
            record.free,
            record.quarantined is not None,
            record.is_open,
            ready,
            files,
        )
        if self._filed.get(name) == now:
            return False
        self.unfile(name)
        self._filed[name] = now
        self.records[name] = record
        self.slots += record.info.slots
        self.occupied += record.occupied
        self.most_models = max(self.most_models, len(record.models))
        for file in files:
            self._slots_with[file] += record.info.slots
        if record.quarantined is not None:
            self.quarantined[name] = record
        if not record.is_open:
            return True
        self.open.put(record)
        for file in files:
            self._holders.setdefault(file, LeastBusy()).put(record)
        if record.free:
            self.free.put(record)
            self.changed[name] = record
            for file in ready:
                self._free_with.setdefault(file, LeastBusy()).put(record)
        return True

    def unfile(self, name: str) -> None:
        """Remove a replica from every index."""
        filed, record = self._filed.pop(name, None), self.records.pop(name, None)
        if filed is None or record is None:
            return
        self.occupied -= filed.occupied
        self.slots -= record.info.slots
        for index in (self.open, self.free):
            index.discard(name)
        self.quarantined.pop(name, None)
        self.changed.pop(name, None)
        for file in filed.files:
            self._slots_with[file] -= record.info.slots
            if not self._slots_with[file]:
                del self._slots_with[file]
            _discard(self._holders, file, name)
        for file in filed.ready:
            _discard(self._free_with, file, name)


def _discard(index: dict[str, LeastBusy], file: str, name: str) -> None:
    """Remove a replica from the index of one file."""
    if (records := index.get(file)) is not None:
        records.discard(name)
        if not len(records):
            del index[file]


class Replicas(Mapping[str, ReplicaRecord]):
    """Every replica by its id, and by its pool."""

    def __init__(self) -> None:
        self._records: dict[str, ReplicaRecord] = {}
        self._pools: defaultdict[str, PoolReplicas] = defaultdict(PoolReplicas)
        self.moved = False
        """Whether a replica has changed so that a task may be able to start."""

    def __getitem__(self, replica_id: str) -> ReplicaRecord:
        return self._records[replica_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def pool(self, name: str) -> PoolReplicas:
        """Return the replicas of a pool, none for an unknown one."""
        return self._pools[name]

    def least_busy(self, pool: str) -> ReplicaRecord | None:
        """Return the least busy replica of a pool; a quarantined one only if there is no other."""
        there = self._pools[pool]
        return next(chain(there.open, there.of_suspects()), None)

    def quarantined(self) -> Iterator[str]:
        """Yield the jobs that have a quarantined replica in any pool."""
        for pool in self._pools.values():
            yield from (record.quarantined for record in pool.quarantined.values() if record.quarantined)

    def join(self, info: ReplicaInfo, host: str = "", *, drained: bool = False) -> None:
        """Add an empty replica on a host. drained: whether an operator wants it to take no tasks."""
        self._records[info.replica_id] = record = ReplicaRecord(info, host, drained=drained)
        self._file(record)

    def drop(self, replica_id: str) -> ReplicaRecord | None:
        """Remove and return a replica, or return None."""
        record = self._records.pop(replica_id, None)
        if record is not None:
            self._pools[record.info.pool].unfile(replica_id)
            self.moved = True
        return record

    def start(self, record: ReplicaRecord, task_id: TaskId, work: RunningWork) -> None:
        """Record that a replica runs a task."""
        record.running.add(task_id)
        record.work[task_id] = work
        record.owed_s = work.owed_s or max(0.0, record.owed_s - work.work_s)
        self._file(record)

    def release_slot(self, record: ReplicaRecord, task_id: TaskId) -> None:
        """Record that a running task has released its slot."""
        if task_id in record.running:
            record.slotless.add(task_id)
            self._file(record)

    def end(self, record: ReplicaRecord, task_id: TaskId) -> RunningWork | None:
        """Record that a task on a replica has ended, and return its work."""
        record.running.discard(task_id)
        record.slotless.discard(task_id)
        work = record.work.pop(task_id, None)
        self._file(record)
        return work

    def hold(self, record: ReplicaRecord, recipes: tuple[str, ...]) -> None:
        """Record which weights a replica has loaded."""
        before, record.recipes = record.loaded, recipes
        record.loaded = frozenset(file for recipe in recipes for file in files_in(recipe))
        record.models = frozenset(next(files_in(recipe)) for recipe in recipes)
        # An eviction without a load was made for memory to work with, or on request.
        self._pools[record.info.pool].crowded |= bool(before - record.loaded and record.loaded - before)
        self._file(record)

    def expect(self, record: ReplicaRecord, file: str | None, owed_s: float = 0.0) -> None:
        """Record the file that a replica prefetches, None for none, and how long it should then work with it."""
        record.prefetching = frozenset() if file is None else frozenset([file])
        record.overdue = False
        record.owed_s = max(record.owed_s, owed_s)
        self._file(record)

    def wait_no_longer(self, record: ReplicaRecord) -> None:
        """Let tasks start on a replica that has not reported the end of its prefetch."""
        record.overdue = True
        self._file(record)

    def drain(self, record: ReplicaRecord, why: str) -> None:
        """Record why a replica takes no more tasks of any job; "" if it does again."""
        record.draining = why
        self._file(record)

    def set_drained(self, record: ReplicaRecord, drained: bool) -> None:
        """Record whether an operator wants a replica to take no more tasks."""
        record.drained = drained
        self._file(record)

    def keep(self, record: ReplicaRecord, job_id: str | None) -> None:
        """Quarantine a replica for one job, or end that with None."""
        record.quarantined = job_id
        self._file(record)

    def _file(self, record: ReplicaRecord) -> None:
        if record.info.replica_id in self._records:
            self.moved |= self._pools[record.info.pool].file(record)


_NONE = LeastBusy()
