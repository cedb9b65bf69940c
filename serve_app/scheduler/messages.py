"""What the scheduler is told and what it answers: the nouns on the wire between it, the replicas and the ingress.

Plain data that pickles. Nothing here decides anything; `machine.py` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from serve_app.errors import Problem
from serve_app.events import Event, Failure, JobState
from serve_app.graph.graph import Graph, Node, Origin
from serve_app.graph.plan import Task, TaskId
from serve_app.graph.spec import NodeSpec
from serve_app.nodes.routes import PackRoute
from serve_app.scheduler.tally import Load
from serve_app.store.changes import JobQuery
from serve_app.store.reserved import Contents

# From ingress ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submission:
    """A validated job on its way to the database.

    prompt: the wire JSON with constants converted, which is what runs. outputs: the output nodes to run.
    number: the client's own queue number, None for the next one; front: the next one, negated.
    """

    job_id: str
    prompt: Mapping[str, Any]
    outputs: tuple[str, ...]
    client_id: str | None = None
    extra_data: Mapping[str, Any] = field(default_factory=dict)
    number: float | None = None
    front: bool = False


@dataclass(frozen=True, slots=True)
class Accepted:
    """The answer to a submission that is in the database. Submitting the same job_id again gives the same answer."""

    job_id: str
    number: float


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a graph's classes said of it. fingerprints: by node id, of the classes that have IS_CHANGED."""

    problems: tuple[Problem, ...] = ()
    fingerprints: Mapping[str, Any] = field(default_factory=dict)


Unfinished: TypeAlias = Literal["queued", "running"]


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as its client may see it, at one moment.

    percent: 0–99 while it waits or runs, 100 after success. outputs: ui dict by node id, as far as recorded.
    failure: the data of the event that ended the job, {} after success. cached: nodes whose values were known when
    it started. Times are Unix seconds.
    """

    job_id: str
    number: float
    state: JobState
    prompt: Mapping[str, Any]
    outputs_to_execute: tuple[str, ...]
    client_id: str | None
    extra_data: Mapping[str, Any]
    created_s: float
    started_s: float | None
    ended_s: float | None
    percent: int
    outputs: Mapping[str, Any]
    failure: Failure
    cached: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JobPage:
    """Some of the jobs that a JobQuery finds, and how many it finds in all."""

    jobs: tuple[JobView, ...]
    total: int


@dataclass(frozen=True, slots=True)
class QueueView:
    """Unfinished jobs: running in the order they started, pending in the order they will start."""

    running: tuple[JobView, ...]
    pending: tuple[JobView, ...]


@dataclass(frozen=True, slots=True)
class QueueCount:
    """How many jobs run and how many wait."""

    running: int
    pending: int


@dataclass(frozen=True, slots=True)
class QueueMark:
    """How many jobs have not ended; the version differs from one count to the next."""

    version: int
    remaining: int


@dataclass(frozen=True, slots=True)
class Reader:
    """One socket of a client, and how far it has sent: the seq of the last event that is out."""

    token: str
    after: int


@dataclass(frozen=True, slots=True)
class Attached:
    """Where a client's new socket begins to read; what has gone out by an earlier one lies before `after`.

    running: the client's jobs that have started and not ended.
    """

    after: int
    queue: QueueMark
    running: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class News:
    """What clients have not been sent yet, at one moment. replaced: clients that a newer socket reads for."""

    events: Mapping[str, tuple[Event, ...]]
    replaced: frozenset[str]
    queue: QueueMark


@dataclass(frozen=True, slots=True)
class Gpu:
    """One physical GPU; memory in MB. uuid tells equal cards apart."""

    uuid: str
    name: str
    vram_total_mb: int
    vram_free_mb: int
    vram_used_mb: int


@dataclass(frozen=True, slots=True)
class HostStats:
    """One host's memory in MB and its GPUs, as a process on it saw them."""

    host: str
    ram_total_mb: int
    ram_used_mb: int
    ram_available_mb: int
    gpus: tuple[Gpu, ...]


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One replica, for operators: what it runs, what it holds, what to know of it.

    quarantined: the job that it is kept for alone.
    """

    replica_id: str
    pool: str
    slots: int
    running: int
    recipes: tuple[str, ...]
    quarantined: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Trouble:
    """A replica that cannot work, and what it says of it."""

    replica_id: str
    pool: str
    why: str


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The cluster at one moment: hosts (each once), replicas, seconds since the server started, what is wrong."""

    hosts: tuple[HostStats, ...]
    replicas: tuple[ReplicaView, ...]
    uptime_s: float
    epoch: int
    load: Load = field(default_factory=Load)
    troubles: tuple[Trouble, ...] = ()


class SchedulerClient(Protocol):
    """What the ingress can ask. Errors: UnavailableError (and its kinds) when the client should come back later."""

    async def submit(self, submission: Submission) -> Accepted: ...

    async def cancel(self, job_id: str) -> bool:
        """Cancel a job that has not ended; False if it has, or is unknown."""
        ...

    async def cancel_all(self, job_ids: Sequence[str] | None, which: Unfinished | None = None) -> int:
        """Cancel jobs that have not ended: these, or all; of them only those that wait, or that run. Returns how many.

        What has ended or is unknown is passed over.
        """
        ...

    async def queue(self) -> QueueView: ...

    async def count(self) -> QueueCount:
        """Return how long the lists of `queue` are."""
        ...

    async def job(self, job_id: str) -> JobView | None: ...

    async def events(self, job_id: str, after: int, timeout_s: float) -> list[Event]:
        """Return the job's events with seq > after, waiting up to timeout_s for the first; [] if none came."""
        ...

    async def page(self, query: JobQuery) -> JobPage: ...

    async def forget(self, job_ids: Sequence[str] | None) -> None:
        """Forget ended jobs: these, or all."""
        ...

    async def free(self, wish: Free) -> None:
        """Let every replica free memory when it has nothing to do."""
        ...

    async def answered(self, job_id: str) -> None:
        """Note that the job's client knows its id: from here on it may be told of it."""
        ...

    async def attach(self, client_id: str, token: str) -> Attached:
        """Let this socket read for the client from where it was; any earlier socket of it is replaced."""
        ...

    async def news(self, readers: Mapping[str, Reader], queue: int, timeout_s: float) -> News:
        """Return what these clients have not been sent, waiting for the first; also when the queue's version differs.

        What a reader has sent may be forgotten.
        """
        ...

    async def check(self, graph: Graph, outputs: Sequence[str]) -> Hooks:
        """Run what the classes of the outputs' ancestry have to say (VALIDATE_INPUTS, IS_CHANGED) in their workers.

        Errors: NotReadyError when no replica that may run them comes in time.
        """
        ...

    async def specs(self, pool: str | None = None) -> Mapping[str, NodeSpec]:
        """Return the node classes of the pools that share workflows, or of one pool.

        Errors: NotReadyError before any of its replicas has joined.
        """
        ...

    async def routes(self) -> Mapping[str, tuple[PackRoute, ...]]:
        """Return the routes of node packs by the pool that answers for them, in the order that pools are asked."""
        ...

    async def cluster(self) -> ClusterView: ...

    async def story(self, job_id: str) -> Sequence[tuple[float, str]]:
        """Return what the scheduler was told of an unfinished job lately, as (Unix time, what); [] for any other."""
        ...


# Between scheduler and replicas ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    """A replica as it joins. slots: tasks it runs at once. routes: of the node packs that its pool answers for.

    notes: what an operator should know of it, such as packs that could not be imported.
    """

    replica_id: str
    pool: str
    slots: int
    routes: tuple[PackRoute, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Assign:
    """Message: run this task."""

    task: Task


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Message: stop this task at its next evaluation; it is answered by TaskStopped."""

    task_id: TaskId


@dataclass(frozen=True, slots=True)
class Free:
    """Message: once no task runs, let go of weights, of results, or of both."""

    weights: bool
    results: bool


@dataclass(frozen=True, slots=True)
class Export:
    """Message: send the value of this signature to whoever asked; answered by Exported or Evicted."""

    signature: str


@dataclass(frozen=True, slots=True)
class Deliver:
    """Message: the value you wanted. value: what Exported carried (an object ref on Ray, else the value itself)."""

    signature: str
    value: Any


@dataclass(frozen=True, slots=True)
class Compute:
    """Message: nobody has or makes the value you wanted any more; make it yourself."""

    signature: str


@dataclass(frozen=True, slots=True)
class Check:
    """Message: run what these nodes' classes have to say before a job is accepted; answered by Checked.

    nodes: the whole graph, since a node may ask for the types of what it is linked to. node_ids: whom to ask.
    """

    check_id: int
    nodes: Mapping[str, Node]
    node_ids: tuple[str, ...]


Message: TypeAlias = Assign | Interrupt | Export | Deliver | Compute | Check | Free


@dataclass(frozen=True, slots=True)
class NodeStarted:
    """origin: of a node that another one made, here and in the reports below."""

    task_id: TaskId
    node_id: str
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class NodeProgressed:
    """value of maximum units done, for one node."""

    task_id: TaskId
    node_id: str
    value: float
    maximum: float
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class NodeFinished:
    """A node's values are held by the replica under the signature. ui: what an output node shows, else None.

    computed: it ran for this task, and was not there already.
    """

    task_id: TaskId
    node_id: str
    signature: str
    ui: Mapping[str, Any] | None
    origin: Origin | None = None
    computed: bool = True


@dataclass(frozen=True, slots=True)
class NodesCached:
    """Nodes that need not run, since what runs the task has their values from an earlier one."""

    task_id: TaskId
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NodeBlocked:
    """A node was passed over, for a reason that its client is told; the job goes on."""

    task_id: TaskId
    node_id: str
    class_type: str
    message: str


@dataclass(frozen=True, slots=True)
class NodeSaid:
    """A message of a node's own for its client. data: a JSON value."""

    task_id: TaskId
    node_id: str
    type: str
    data: Any


@dataclass(frozen=True, slots=True)
class ClientTold:
    """A message of a node pack's own for a client, outside any job. data: a JSON value."""

    client_id: str
    type: str
    data: Any


@dataclass(frozen=True, slots=True)
class NodePreviewed:
    """What a node has come to, as a picture. image: a JPEG, as `Transfer.put` has put it away."""

    task_id: TaskId
    node_id: str
    image: Any
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class TaskFinished:
    task_id: TaskId


@dataclass(frozen=True, slots=True)
class TaskFailed:
    """A node raised. It ends the job: the same inputs would fail again. inputs: what it was given, as text."""

    task_id: TaskId
    node_id: str
    class_type: str
    exception_type: str
    message: str
    traceback: tuple[str, ...]
    inputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskStopped:
    """An interrupted task has let go of its slot."""

    task_id: TaskId


@dataclass(frozen=True, slots=True)
class TaskCancelled:
    """A node of the task has cancelled the job by itself."""

    task_id: TaskId


@dataclass(frozen=True, slots=True)
class Want:
    """The replica needs a value that the task named as remote."""

    task_id: TaskId
    signature: str


@dataclass(frozen=True, slots=True)
class Exported:
    signature: str
    value: Any


@dataclass(frozen=True, slots=True)
class Evicted:
    """The replica no longer holds these values."""

    signatures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found wrong, and the fingerprints of the nodes that have one."""

    check_id: int
    problems: tuple[Problem, ...]
    fingerprints: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Resident:
    """Which recipes' weights the replica holds now, as short names."""

    recipes: tuple[str, ...]


Report: TypeAlias = (
    NodeStarted
    | NodeProgressed
    | NodeFinished
    | NodesCached
    | NodeBlocked
    | NodeSaid
    | ClientTold
    | NodePreviewed
    | TaskFinished
    | TaskFailed
    | TaskStopped
    | TaskCancelled
    | Want
    | Exported
    | Evicted
    | Resident
    | Checked
)


class ReplicaDesk(Protocol):
    """What a replica can ask of the scheduler. Errors: StaleEpochError when it must join again."""

    async def join(self, info: ReplicaInfo, specs: list[NodeSpec], host: HostStats) -> int:
        """Register, forgetting any earlier life of this id, and return the scheduler's epoch."""
        ...

    async def poll(self, replica_id: str, epoch: int, after: int) -> list[tuple[int, Message]]:
        """Return (cursor, message) pairs with cursor > after; waits a few seconds for the first, then returns []."""
        ...

    async def report(self, replica_id: str, epoch: int, reports: list[Report], host: HostStats | None) -> None: ...

    async def reserve(
        self, task_id: TaskId, node_id: str, key: str, at_least: int, contents: Contents
    ) -> tuple[int, bool]:
        """Return the first of `count` consecutive counters for files named by `key`, none below at_least.

        The same (job, node, key) gets the same counters again, whatever the attempt, and is told so.
        Errors: StaleAttemptError.
        """
        ...

    async def leave(self, replica_id: str, epoch: int) -> None: ...

    async def trouble(self, replica_id: str, pool: str, why: str) -> None:
        """Note that the replica cannot work, and why; what ran there is lost as if it had died. Said until it joins."""
        ...
