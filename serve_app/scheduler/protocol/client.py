"""What the ingress asks of the scheduler and is answered: submissions, jobs as clients may see them, feeds, the queue.

Plain data that pickles, and the protocol. What goes between scheduler and replicas is in `messages.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from serve_app.errors import Problem, QuotaLeft
from serve_app.events import Event, Failure, JobState
from serve_app.graph.graph import Graph
from serve_app.graph.spec import NodeSpec
from serve_app.packs.routes import PackRoute
from serve_app.scheduler.core.demand import Demand
from serve_app.scheduler.protocol.cluster_view import ClusterView, ReplicaTrouble
from serve_app.scheduler.protocol.messages import Free, SocketFrame
from serve_app.store.database.changes import NO_CLAIMS, Claims, JobKey, JobQuery

# Here and not above: whoever only names them needs no database.
if TYPE_CHECKING:
    from serve_app.store.database.queries import Query
    from serve_app.store.tenants.pauses import Pause

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Submission:
    """A validated job on its way to the database.

    prompt: the wire JSON with constants converted, which is what runs. outputs: the output nodes to run.
    number: the client's own queue number, None for the next one; front: the next one, negated. id_is_new: nobody can
    have submitted anything under this id before. labels: what the client calls the job. claims: what it takes hold of.
    tenant: whose it is, as JobRow.
    """

    job_id: str
    prompt: Mapping[str, Any]
    outputs: tuple[str, ...]
    client_id: str | None = None
    extra_data: Mapping[str, Any] = field(default_factory=dict)
    number: float | None = None
    front: bool = False
    id_is_new: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    claims: Claims = NO_CLAIMS
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The answer to a submission that is in the database. Submitting the same job_id again gives the same job.

    left: what is left of its tenant's quotas that the scheduler knows of. held: whether its client's sockets are told
    nothing of it before `answered`.
    """

    job_id: str
    number: float
    left: tuple[QuotaLeft, ...] = ()
    held: bool = False


@dataclass(frozen=True, slots=True)
class Prevalidation:
    """Outcome of the node classes' own checks. fingerprints: by node id, of the classes that have IS_CHANGED."""

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
    labels: Mapping[str, str] = field(default_factory=dict)
    tenant: str = ""

    def is_of(self, tenant: str) -> bool:
        """Whether a tenant may know of it, as `JobRow.is_of`."""
        return tenant in ("", self.tenant)


@dataclass(frozen=True, slots=True)
class JobProgress:
    """How an unfinished job stands, at one moment.

    position: its place in the queue, from 1, while it waits. percent: 0–99. done, total: of the nodes that it may run.
    node: one that runs, as submitted, with its class; step of steps: as it last said. preview: the cursor of the newest
    picture that there is of it, 0 for none.
    """

    position: int | None
    percent: int
    done: int
    total: int
    node: str | None = None
    class_type: str | None = None
    step: int | None = None
    steps: int | None = None
    preview: int = 0


class QueueItem(NamedTuple):
    """An unfinished job as the queue lists it. One that is not whole has its id, number and time alone."""

    job_id: str
    number: float
    created_s: float
    prompt: Mapping[str, Any] = {}
    outputs_to_execute: tuple[str, ...] = ()
    client_id: str | None = None
    extra_data: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class QueueCount:
    """How many jobs run and how many wait."""

    running: int
    pending: int


@dataclass(frozen=True, slots=True)
class QueueBounds:
    """What one answer carries of the queue: items, and the bytes that the whole ones among them take in memory."""

    items: int
    bytes: int


@dataclass(frozen=True, slots=True)
class JobKeys:
    """Which jobs a query finds, in its order; total: how many without its window."""

    keys: tuple[JobKey, ...]
    total: int


@dataclass(frozen=True, slots=True)
class QueueView:
    """Unfinished jobs: running in the order they started, pending in the order they will start.

    Within the bounds that were asked for: the first are whole, the next are named, the rest are in `count` only.
    paused: what is held back. wait_s: for how long no job begins of those that have ended a replica.
    """

    running: tuple[QueueItem, ...]
    pending: tuple[QueueItem, ...]
    count: QueueCount
    paused: tuple[Pause, ...] = ()
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class QueueMark:
    """How many jobs have not ended; the version differs from one count to the next. of: by tenant, those of tenants."""

    version: int
    remaining: int
    of: Mapping[str, int] = field(default_factory=dict)

    def left(self, tenant: str) -> int:
        """Return how many jobs have not ended of those that a tenant knows of."""
        return self.of.get(tenant, 0) if tenant else self.remaining


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
    """What clients have not been sent yet, at one moment. replaced: clients that a newer socket reads for.

    held: clients with a submission that has not been answered. The queue's length must wait with that job's events: a
    client that hears of a queue without its job takes the job for ended, and has not heard that it ran.
    """

    events: Mapping[str, tuple[Event, ...]]
    replaced: frozenset[str]
    queue: QueueMark
    held: frozenset[str] = frozenset()


class SchedulerClient(Protocol):
    """What the ingress can ask. Errors: UnavailableError (and its kinds) when the client should come back later.

    tenant: who asks; of what others have nothing is known, found or changed. "" is the operator, who has all.
    """

    async def submit(self, submission: Submission) -> Accepted: ...

    async def cancel(self, job_id: str, tenant: str = "") -> bool:
        """Cancel a job that has not ended; False if it has, or is unknown."""
        ...

    async def cancel_all(self, job_ids: Sequence[str] | None, which: Unfinished | None = None, tenant: str = "") -> int:
        """Cancel jobs that have not ended: these, or all; of them only those that wait, or that run. Returns how many.

        What has ended or is unknown is passed over.
        """
        ...

    async def queue(self, bounds: QueueBounds, tenant: str = "") -> QueueView: ...

    async def count(self, tenant: str = "") -> QueueCount: ...

    async def job(self, job_id: str, tenant: str = "") -> JobView | None: ...

    async def progress(self, job_id: str, tenant: str = "") -> JobProgress | None:
        """Return how a job stands; None once it has ended, and of one that is unknown."""
        ...

    async def preview(self, job_id: str, tenant: str = "") -> Event | None:
        """Return the newest `preview` of a job that has not ended, if there is one."""
        ...

    async def query(self, query: Query[T]) -> T:
        """Return what the database answers."""
        ...

    async def events(self, job_id: str, after: int, timeout_s: float, tenant: str = "") -> list[Event]:
        """Return the job's events with seq > after, waiting up to timeout_s for the first; [] if none came.

        Errors: JobMissingError.
        """
        ...

    async def keys(self, query: JobQuery) -> JobKeys:
        """Return which jobs a query finds."""
        ...

    async def views(self, job_ids: Sequence[str], brief: bool, tenant: str = "") -> tuple[JobView, ...]:
        """Return these jobs in this order, without those that are unknown. brief: see JobQuery."""
        ...

    async def forget(self, job_ids: Sequence[str] | None, tenant: str = "") -> None:
        """Forget ended jobs: these, or all."""
        ...

    async def remove(self, job_ids: Sequence[str] | None, tenant: str = "") -> tuple[int, tuple[str, ...]]:
        """Forget ended jobs, these or all, and delete their files, but for those that others need.

        Return how many, and which of these have not ended.
        """
        ...

    async def warm(self, models: Sequence[str], pool: str | None) -> tuple[str, ...]:
        """Have the replicas of a pool, or of every one, load models ahead; return the replicas that are told.

        Errors: InvalidSubmissionError for a pool that is not there.
        """
        ...

    async def pause(self, pause: Pause, paused: bool) -> tuple[Pause, ...]:
        """Hold back what has not started, or let it go on; return what is held back from now on, for good.

        Errors: InvalidSubmissionError for a pool that is not there.
        """
        ...

    async def hear(self, replica_id: str, said: SocketFrame) -> None:
        """Tell a replica what a client has said on a websocket that it answers."""
        ...

    async def free(self, wish: Free) -> None:
        """Let every replica free memory when it has nothing to do."""
        ...

    async def answered(self, job_id: str) -> None:
        """Note that the job's client knows its id: from here on it may be told of it."""
        ...

    async def attach(self, feed: str, token: str) -> Attached:
        """Let this socket read a feed from where its client was; any earlier socket of it is replaced."""
        ...

    async def news(self, readers: Mapping[str, Reader], queue: int, timeout_s: float) -> News:
        """Return what these feeds' clients have not been sent, waiting for the first; also when the queue's version
        differs.

        What a reader has sent may be forgotten.
        """
        ...

    async def check(self, graph: Graph, outputs: Sequence[str]) -> Prevalidation:
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

    async def ready(self) -> Sequence[ReplicaTrouble]:
        """Return which replicas cannot work, once a change has been committed."""
        ...

    async def story(self, job_id: str, tenant: str = "") -> Sequence[tuple[float, str]]:
        """Return what the scheduler was told of an unfinished job lately, as (Unix time, what); [] for any other."""
        ...

    async def backlog(self, pool: str) -> Demand:
        """Return what the pool is asked for; what autoscaling goes by."""
        ...
