"""What a job's row can go through: the durable changes the scheduler asks for, as data.

`jobs.py` applies them; `scheduler/core/machine.py` asks for them. A change is in the database before anyone is
told of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from serve_app.events import Ending, Failure, JobState
from serve_app.store.files.reserved import Contents

NO_FAILURE = Failure()
"""The same object for every job that has not failed, of which thousands may wait in memory."""


@dataclass(frozen=True, slots=True)
class JobRow:
    """One job as the database holds it.

    order: position in submission order, unique. *_seq: the event cursors of its queued, started and ended events.
    prompt: the wire JSON with constants converted. outputs: ui dict by node id, as recorded, with their cursors.
    cached: the nodes whose values were known when it started; the event that says so has the cursor after started_seq.
    losses, lone_losses: replicas that it has lost, together with other jobs and alone.
    labels: its client's words for it. tenant: whose it is; "" is the operator's, and everyone's where there are no
    tenants.
    """

    job_id: str
    number: float
    order: int
    prompt: Mapping[str, Any]
    targets: tuple[str, ...]
    client_id: str | None
    extra_data: Mapping[str, Any]
    created_s: float
    queued_seq: int
    state: JobState = "queued"
    started_s: float | None = None
    started_seq: int | None = None
    ended_s: float | None = None
    ended_seq: int | None = None
    failure: Failure = NO_FAILURE
    cached: tuple[str, ...] = ()
    outputs: Mapping[str, tuple[int, Mapping[str, Any]]] = field(default_factory=dict)
    losses: int = 0
    lone_losses: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    tenant: str = ""

    @property
    def ended(self) -> bool:
        """Whether the job has come to its end."""
        return self.ended_s is not None

    @property
    def feed(self) -> str | None:
        """What its client's events are known by; None without one, and for "", which is no socket's id."""
        return feed_of(self.tenant, self.client_id) if self.client_id else None

    def is_of(self, tenant: str) -> bool:
        """Whether a tenant may know of it; "" is the operator, who may of all."""
        return tenant in ("", self.tenant)


def feed_of(tenant: str, client_id: str) -> str:
    """Return what a client's events are known by: clients of two tenants are two, whatever they call themselves."""
    return f"{tenant}\n{client_id}" if tenant else client_id


@dataclass(frozen=True, slots=True)
class Claims:
    """What a new job takes hold of in the transaction that inserts it, or is refused for with ClaimRefusedError.

    key: an idempotency key, as `keys.py` has them; None for none. assets: ids of those that it uses: none is taken away
    before it has ended.
    """

    key: str | None = None
    assets: tuple[str, ...] = ()


NO_CLAIMS = Claims()


@dataclass(frozen=True, slots=True)
class JobAccepted:
    row: JobRow
    claims: Claims = NO_CLAIMS

    @property
    def job_id(self) -> str:
        """The job's id, which every change has."""
        return self.row.job_id


@dataclass(frozen=True, slots=True)
class JobStarted:
    """cached: the nodes whose values are known already; the next cursor is that of the event which says so."""

    job_id: str
    at_s: float
    seq: int
    cached: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JobLostReplica:
    """How many replicas the job has lost by now; see JobRow. A restart of the scheduler forgives none."""

    job_id: str
    losses: int
    lone_losses: int


@dataclass(frozen=True, slots=True)
class OutputRecorded:
    """An output node of the job is done, for good: it is skipped whenever the job is planned again."""

    job_id: str
    node_id: str
    ui: Mapping[str, Any]
    seq: int


@dataclass(slots=True, eq=False)
class CountersReserved:
    """A node of the job is to save files that consecutive counters of `key` name. The transaction fills in which.

    at_least: none is below it; 0 asks for what follows those given before, and is answered 0 if none were: then files
    may be there that nobody here counted. The same (job, node, key) is given the same ones again while they are high
    enough. first: the first of them. again: whether they were reserved before, None until a transaction has looked; one
    that is tried again, as the answer to its COMMIT was lost, may find what the first try reserved, so what that found
    stays.
    """

    job_id: str
    node_id: str
    key: str
    at_least: int
    contents: Contents
    first: int = 0
    again: bool | None = None


@dataclass(frozen=True, slots=True)
class JobEnded:
    """failure: of its error, or where it was when it was cancelled."""

    job_id: str
    state: Ending
    at_s: float
    seq: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class TenantUsed:
    """What a tenant has used of GPUs in a day, all together; written with a job's end. day: of UTC, since 1970."""

    job_id: str
    tenant: str
    day: int
    gpu_s: float


@dataclass(frozen=True, slots=True)
class OwnerCharged:
    """How many replicas an owner of jobs has ended and not been forgiven, when the last, until when its jobs wait.

    client_id: of jobs without tenant.
    """

    tenant: str
    client_id: str | None
    count: int
    last_s: float
    until_s: float
    job_id: str = ""


Sort: TypeAlias = Literal["created", "ended", "duration"]
"""What a list is sorted by: the order of submission, the cursors of ends, or how long jobs ran."""


@dataclass(frozen=True, slots=True)
class JobQuery:
    """Which jobs to list, and in what order. A job that was cancelled before it started is in no list.

    states: of the database: queued, running, success, error, cancelled; only the last three in a list by ends. limit
    None: all from offset. workflow_id: only jobs of this saved workflow. brief: without prompts, and of extra_data only
    the id of the saved workflow. tenant: only of jobs that it may know of. start: the order, or cursor, that offset
    counts from; None for the first. Of no meaning where jobs are sorted by how long they ran.
    """

    states: tuple[str, ...]
    sort: Sort = "ended"
    descending: bool = False
    offset: int = 0
    limit: int | None = None
    workflow_id: str | None = None
    brief: bool = False
    tenant: str = ""
    start: int | None = None


class ListCount(NamedTuple):
    """How many jobs of one tenant and state lie in one stretch of places of the list by creation and of that by ends.

    ended: None of jobs that have not, which are in no list by ends.
    """

    tenant: str
    state: str
    created: int
    ended: int | None
    jobs: int = 1


Change: TypeAlias = (
    JobAccepted | JobStarted | JobLostReplica | CountersReserved | OutputRecorded | JobEnded | TenantUsed | OwnerCharged
)

JobKey: TypeAlias = tuple[str, int | None]
"""What tells a job's states apart: its id, and the cursor of its end, after which nothing of it changes."""
