"""The ingress's protocol with the scheduler: jobs as clients see them, feeds, the queue.

Plain data, which goes between processes by the types that are declared here (`deployments/codec.py`). The protocol
between scheduler and replicas is in `messages.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from serve_app.errors import Problem, QuotaLeft
from serve_app.events import Event
from serve_app.graph.graph import Graph
from serve_app.graph.spec import NodeSpec
from serve_app.packs.routes import PackRoute
from serve_app.scheduler.core.demand import Demand
from serve_app.scheduler.protocol.cluster_view import ClusterView, ReplicaTrouble
from serve_app.scheduler.protocol.messages import Free, SocketFrame
from serve_app.store.database.changes import Job, JobKey, JobQuery, Submission

# Not imported at run time: naming them needs no database.
if TYPE_CHECKING:
    from serve_app.store.database.queries import Query
    from serve_app.store.tenants.pauses import Pause

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Accepted:
    """The answer to a submission that is in the database. Submitting the same job_id again gives the same job.

    left: of those quotas of its tenant that the scheduler knows. held: whether its events wait until `answered`.
    """

    job_id: str
    number: float
    left: tuple[QuotaLeft, ...] = ()
    held: bool = False


@dataclass(frozen=True, slots=True)
class Prevalidation:
    """The result of the node classes' own checks. fingerprints: by node id, of classes with IS_CHANGED."""

    problems: tuple[Problem, ...] = ()
    fingerprints: Mapping[str, Any] = field(default_factory=dict)


Unfinished: TypeAlias = Literal["queued", "running"]


@dataclass(frozen=True, slots=True)
class JobView(Job):
    """A snapshot of a job as its client sees it. percent: 0–99 while it waits or runs, 100 after success."""

    percent: int = 0


@dataclass(frozen=True, slots=True)
class JobProgress:
    """A snapshot of an unfinished job's progress.

    position: in the queue, from 1, while it waits. percent: 0–99. done, total: of the nodes that it may run. node: a
    running one, as submitted, with its class; step of steps: its last report. text: what it last said of itself, such
    as how far its models are loaded. preview: the cursor of the newest preview, 0 for none. left_s: about how long the
    node's other steps take at the rate of its last ones, None before two are done; nodes after it are not counted.
    """

    position: int | None
    percent: int
    done: int
    total: int
    node: str | None = None
    class_type: str | None = None
    step: int | None = None
    steps: int | None = None
    text: str = ""
    preview: int = 0
    left_s: float | None = None


class QueueItem(NamedTuple):
    """An unfinished job in the queue's list. Beyond the bound of bytes it has its id, number and time only."""

    job_id: str
    number: float
    created_s: float
    prompt: Mapping[str, Any] = {}
    targets: tuple[str, ...] = ()
    client_id: str | None = None
    extra_data: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class QueueCount:
    """How many jobs run and how many wait."""

    running: int
    pending: int


@dataclass(frozen=True, slots=True)
class QueueBounds:
    """The limits of one answer: items, and the bytes in memory of those with their prompt."""

    items: int
    bytes: int


@dataclass(frozen=True, slots=True)
class JobKeys:
    """The jobs that a query finds, in its order. total: without its window."""

    keys: tuple[JobKey, ...]
    total: int


@dataclass(frozen=True, slots=True)
class QueueView:
    """Unfinished jobs: running in the order they started, pending in the order they will start.

    Within the requested bounds: the first are complete, the next have ids only, the rest are in `count` only. paused:
    the pauses. wait_s: how long the tenant's jobs wait because they have ended replicas.
    """

    running: tuple[QueueItem, ...]
    pending: tuple[QueueItem, ...]
    count: QueueCount
    paused: tuple[Pause, ...]
    wait_s: float


@dataclass(frozen=True, slots=True)
class QueueMark:
    """The number of unfinished jobs; each count has a new version. of: by tenant."""

    version: int
    remaining: int
    of: Mapping[str, int] = field(default_factory=dict)

    def left(self, tenant: str) -> int:
        """Return the number of unfinished jobs that a tenant can see."""
        return self.of.get(tenant, 0) if tenant else self.remaining


@dataclass(frozen=True, slots=True)
class Reader:
    """One socket of a client, and the seq of the last event that it has sent."""

    token: str
    after: int


@dataclass(frozen=True, slots=True)
class Attached:
    """Where a client's new socket begins to read: `after` the last event that an earlier one has sent.

    running: the client's running jobs.
    """

    after: int
    queue: QueueMark
    running: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UnsentEvents:
    """Unsent events by client. replaced: clients that a newer socket reads for.

    held: clients with a submission that is not answered. The queue's length must wait with that job's events: a client
    that gets a queue without its job takes the job for ended, before it has got the event that it ran.
    """

    events: Mapping[str, tuple[Event, ...]]
    replaced: frozenset[str]
    queue: QueueMark
    held: frozenset[str] = frozenset()


class SchedulerClient(Protocol):
    """The scheduler's interface for the ingress. Errors: kinds of UnavailableError if the client should retry later.

    tenant: the caller, who sees and changes only its own jobs. "" is the operator, who has all.
    """

    async def submit(self, submission: Submission) -> Accepted: ...

    async def cancel(self, job_id: str, tenant: str = "") -> bool:
        """Cancel a job that has not ended; False if it has, or is unknown."""
        ...

    async def cancel_all(self, job_ids: Sequence[str] | None, which: Unfinished | None = None, tenant: str = "") -> int:
        """Cancel unfinished jobs: these, or all; with `which` only queued or running ones. Return how many.

        Ended and unknown jobs are skipped.
        """
        ...

    async def queue(self, bounds: QueueBounds, tenant: str = "") -> QueueView: ...

    async def count(self, tenant: str = "") -> QueueCount: ...

    async def job(self, job_id: str, tenant: str = "") -> JobView | None: ...

    async def progress(self, job_id: str, tenant: str = "") -> JobProgress | None:
        """Return an unfinished job's progress; None of an ended or unknown one."""
        ...

    async def preview(self, job_id: str, tenant: str = "") -> Event | None:
        """Return the newest `preview` event of an unfinished job, or None."""
        ...

    async def query(self, query: Query[T]) -> T:
        """Run a query on the database and return its result."""
        ...

    async def events(self, job_id: str, after: int, timeout_s: float, tenant: str = "") -> list[Event]:
        """Return the job's events with seq > after, waiting up to timeout_s for the first; [] if none came.

        Errors: JobMissingError.
        """
        ...

    async def keys(self, query: JobQuery) -> JobKeys:
        """Return the keys of the jobs that a query finds."""
        ...

    async def views(self, job_ids: Sequence[str], brief: bool, tenant: str = "") -> tuple[JobView, ...]:
        """Return these jobs in this order, without those that are unknown. brief: see JobQuery."""
        ...

    async def forget(self, job_ids: Sequence[str] | None, tenant: str = "") -> None:
        """Forget ended jobs: these, or all."""
        ...

    async def remove(self, job_ids: Sequence[str] | None, tenant: str = "") -> tuple[int, tuple[str, ...]]:
        """Forget ended jobs, these or all, and delete files that no other job needs.

        Return how many, and those of job_ids that have not ended.
        """
        ...

    async def warm(self, models: Sequence[str], pool: str | None) -> tuple[str, ...]:
        """Load models on the replicas of a pool, or of every pool; return their ids.

        Errors: InvalidSubmissionError for an unknown pool.
        """
        ...

    async def pause(self, pause: Pause, paused: bool) -> tuple[Pause, ...]:
        """Pause or resume jobs that have not started, or drain a replica or host or undo that, durably.

        Return all pauses, or all drains. Errors: InvalidSubmissionError for an unknown pool, replica or host.
        """
        ...

    async def hand_over(self, drain: Pause) -> None:
        """Have a drained replica or host stop its tasks, for others to go on with them."""
        ...

    async def deliver_pack_frame(self, replica_id: str, frame: SocketFrame) -> None:
        """Send a client's websocket frame to the replica that serves the socket."""
        ...

    async def free(self, wish: Free) -> None:
        """Make every replica free memory once it is idle."""
        ...

    async def answered(self, job_id: str) -> None:
        """Note that the client has the job's id, so that its events may be sent."""
        ...

    async def attach(self, feed: str, token: str) -> Attached:
        """Make this socket the reader of a feed, from the last event that was sent; an earlier socket is replaced."""
        ...

    async def unsent_events(self, readers: Mapping[str, Reader], queue: int, timeout_s: float) -> UnsentEvents:
        """Return the unsent events of these feeds, waiting for the first or for a new version of the queue's count.

        Events up to a reader's `after` may be dropped.
        """
        ...

    async def check(self, graph: Graph, outputs: Sequence[str]) -> Prevalidation:
        """Run VALIDATE_INPUTS and IS_CHANGED of the outputs' ancestry in a worker of each pool.

        Errors: NotReadyError if no replica answers in time.
        """
        ...

    async def specs(self, pool: str | None = None) -> Mapping[str, NodeSpec]:
        """Return the node classes of the pools that share workflows, or of one pool.

        Errors: NotReadyError before any of its replicas has joined.
        """
        ...

    async def routes(self) -> Mapping[str, tuple[PackRoute, ...]]:
        """Return the routes of node packs by pool, in order of precedence."""
        ...

    async def cluster(self) -> ClusterView: ...

    async def ready(self) -> Sequence[ReplicaTrouble]:
        """Return the replicas that cannot work, after committing a change."""
        ...

    async def job_trace(self, job_id: str, tenant: str = "") -> Sequence[tuple[float, str]]:
        """Return the latest machine events of an unfinished job, as (Unix time, text); [] for any other."""
        ...

    async def backlog(self, pool: str) -> Demand:
        """Return the pool's load, for autoscaling."""
        ...
