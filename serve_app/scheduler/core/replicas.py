"""The replicas there are, and the indexes by which one is found without a look at the others.

The one place that changes a `ReplicaRecord`, so that the indexes follow. Decides nothing.
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


class Work(NamedTuple):
    """What a task is to its replica. file: the model file it is served by, "" for none. steps: how many it has.

    work_s: how long it is expected to take a slot. files: the model files it names, where replicas load any; they are
    loaded before another task can start, or are now. owed_s: how long its replica is to work with what it loads for it.
    charged_s: what its tenant has been charged for it in advance. due_s: the Unix time at which it is expected to end.
    owner: whose losses of replicas it counts among.
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
    """A replica as the scheduler knows it. recipes: what weights it holds, e.g. "checkpoints/a.safetensors".

    vacated: those of the running tasks that take no slot any more. work: what is known of the running tasks. held: the
    model files of the recipes; models: those without LoRAs. owed_s: for how long it should work with what it has loaded
    before it loads for others. ahead: the file that it has been told to load while it works; overdue: whether nobody
    waits for that any longer. quarantined: the job that it is kept for alone. draining: why it takes no more tasks, ""
    if it does. going_on: whose tasks are over while their nodes go on, and who has not been charged for that.
    """

    info: ReplicaInfo
    running: set[TaskId] = field(default_factory=set)
    vacated: set[TaskId] = field(default_factory=set)
    recipes: tuple[str, ...] = ()
    held: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()
    work: dict[TaskId, Work] = field(default_factory=dict)
    owed_s: float = 0.0
    ahead: frozenset[str] = frozenset()
    overdue: bool = False
    quarantined: str | None = None
    draining: str = ""
    going_on: frozenset[Owner] = frozenset()

    @property
    def is_open(self) -> bool:
        """Whether it is kept for no job and takes tasks."""
        return self.quarantined is None and not self.draining

    @property
    def free(self) -> bool:
        """Whether it can take one more task of any job."""
        return self.is_open and len(self.running) - len(self.vacated) < self.info.slots

    @property
    def occupied(self) -> int:
        """How many slots it needs; one while only tasks run that take none any more, so that it stays."""
        return len(self.running) - len(self.vacated) or min(1, len(self.running))

    @property
    def ready(self) -> frozenset[str]:
        """The model files whose weights it holds, or will hold before another task can start there."""
        there = self.held | self.ahead if self.overdue else self.held
        return there.union(*(work.files for work in self.work.values()))

    @property
    def files(self) -> frozenset[str]:
        """The model files whose weights it holds or will hold."""
        return self.ready | self.ahead

    @property
    def due_s(self) -> float:
        """The Unix time at which one of its tasks is expected to end, the first to do so; 0 if it runs none."""
        return min([work.due_s for work in self.work.values()], default=0.0)

    def runs_only(self, job_id: str) -> bool:
        """Whether nothing of any other job runs on it."""
        return all(task_id.job_id == job_id for task_id in self.running)


class LeastBusy:
    """Replicas by how many tasks they run; of equally busy ones, the one that has been so longest first."""

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
        """Return a replica that is among them, or None."""
        level = self._level.get(replica_id)
        return None if level is None else self._levels[level][replica_id]

    def put(self, record: ReplicaRecord) -> None:
        """Add a replica that is not among them, as busy as it is."""
        level = len(record.running)
        while len(self._levels) <= level:
            self._levels.append(OrderedDict())
        self._levels[level][record.info.replica_id] = record
        self._level[record.info.replica_id] = level

    def discard(self, replica_id: str) -> None:
        """Take out a replica if it is among them."""
        level = self._level.pop(replica_id, None)
        if level is not None:
            del self._levels[level][replica_id]

    def first(self, count: int) -> list[ReplicaRecord]:
        """Return the first replicas in order, at most so many."""
        return list(islice(self, count))


class _Filed(NamedTuple):
    """What the indexes go by of a replica."""

    running: int
    occupied: int
    free: bool
    quarantined: bool
    is_open: bool
    ready: frozenset[str]
    files: frozenset[str]


class PoolReplicas:
    """The replicas of one pool. slots: how many tasks they run at once. occupied: how many they do run.

    open: those that are kept for no job and take tasks. free: those that can take one more task of any job. changed:
    those that have become free, or come to hold other weights while free, since somebody took them out. most_models: of
    how many models one has held weights at once. crowded: whether one has let weights go for others, so that it is
    known how many fit.
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
        """Return the free ones that hold a model file's weights now, and do not only load them ahead."""
        return self._free_with.get(file, _NONE)

    def holders(self, file: str) -> LeastBusy:
        """Return those, kept for no job, that hold a model file's weights or will."""
        return self._holders.get(file, _NONE)

    def of_suspects(self) -> Iterator[ReplicaRecord]:
        """Yield those that are kept for jobs and take tasks of these."""
        return (record for record in self.quarantined.values() if not record.draining)

    def slots_with(self, file: str) -> int:
        """Return how many tasks those run at once that hold a model file's weights."""
        return self._slots_with.get(file, 0)

    def fewest_models(self, looked_at: int) -> int:
        """Return of how many models one of the first free ones, so many, holds weights at least."""
        return min((len(record.models) for record in self.free.first(looked_at)), default=0)

    def file(self, record: ReplicaRecord) -> bool:
        """Bring the indexes up to what a replica is now; return whether it was another before."""
        name = record.info.replica_id
        ready = record.ready
        files = ready | record.ahead
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
        """Take a replica out of every index."""
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
    """Take a replica out of those of a file, if it is among them."""
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
        """Whether anything has changed that a start may follow from."""

    def __getitem__(self, replica_id: str) -> ReplicaRecord:
        return self._records[replica_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def pool(self, name: str) -> PoolReplicas:
        """Return the replicas of a pool; none of one that is unknown."""
        return self._pools[name]

    def least_busy(self, pool: str) -> ReplicaRecord | None:
        """Return the replica of a pool that runs least; one that is kept for a job where there is no other."""
        there = self._pools[pool]
        return next(chain(there.open, there.of_suspects()), None)

    def quarantined(self) -> Iterator[str]:
        """Yield the jobs that replicas of any pool are kept for."""
        for pool in self._pools.values():
            yield from (record.quarantined for record in pool.quarantined.values() if record.quarantined)

    def join(self, info: ReplicaInfo) -> None:
        """Add a replica that runs and holds nothing."""
        self._records[info.replica_id] = record = ReplicaRecord(info)
        self._file(record)

    def drop(self, replica_id: str) -> ReplicaRecord | None:
        """Take a replica out and return it, if it is there."""
        record = self._records.pop(replica_id, None)
        if record is not None:
            self._pools[record.info.pool].unfile(replica_id)
            self.moved = True
        return record

    def start(self, record: ReplicaRecord, task_id: TaskId, work: Work) -> None:
        """Note that a replica runs a task."""
        record.running.add(task_id)
        record.work[task_id] = work
        record.owed_s = work.owed_s or max(0.0, record.owed_s - work.work_s)
        self._file(record)

    def vacate(self, record: ReplicaRecord, task_id: TaskId) -> None:
        """Note that a task on a replica takes no slot any more."""
        if task_id in record.running:
            record.vacated.add(task_id)
            self._file(record)

    def end(self, record: ReplicaRecord, task_id: TaskId) -> Work | None:
        """Note that a replica runs a task no longer, and return what was known of it."""
        record.running.discard(task_id)
        record.vacated.discard(task_id)
        work = record.work.pop(task_id, None)
        self._file(record)
        return work

    def hold(self, record: ReplicaRecord, recipes: tuple[str, ...]) -> None:
        """Note which weights a replica holds."""
        before, record.recipes = record.held, recipes
        record.held = frozenset(file for recipe in recipes for file in files_in(recipe))
        record.models = frozenset(next(files_in(recipe)) for recipe in recipes)
        # What goes alone was let go for work, or because somebody asked for it.
        self._pools[record.info.pool].crowded |= bool(before - record.held and record.held - before)
        self._file(record)

    def expect(self, record: ReplicaRecord, file: str | None, owed_s: float = 0.0) -> None:
        """Note which file a replica is told to load ahead, if any, and for how long it should work for it."""
        record.ahead = frozenset() if file is None else frozenset([file])
        record.overdue = False
        record.owed_s = max(record.owed_s, owed_s)
        self._file(record)

    def wait_no_longer(self, record: ReplicaRecord) -> None:
        """Let tasks start on a replica although it has not said that it has loaded what it was told to load ahead."""
        record.overdue = True
        self._file(record)

    def drain(self, record: ReplicaRecord, why: str) -> None:
        """Note why a replica takes no more tasks, also not of a job that it is kept for; "" if it does again."""
        record.draining = why
        self._file(record)

    def keep(self, record: ReplicaRecord, job_id: str | None) -> None:
        """Keep a replica for one job alone, or for none."""
        record.quarantined = job_id
        self._file(record)

    def _file(self, record: ReplicaRecord) -> None:
        if record.info.replica_id in self._records:
            self.moved |= self._pools[record.info.pool].file(record)


_NONE = LeastBusy()
