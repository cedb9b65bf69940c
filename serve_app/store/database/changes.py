"""A job as data: as submitted and as stored, its durable changes, and queries for lists.

The machine emits them and `jobs.py` applies them. A change is committed before its event is published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

from serve_app.events import Ending, Failure, JobState
from serve_app.store.files.reserved import Contents

T = TypeVar("T")

NO_FAILURE = Failure()
"""The same object for every job that has not failed, of which thousands may wait in memory."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job, as far as clients know it; a `JobRow` has more that is stored, a `JobView` how far it is.

    A column is a field here or there, in `schema.py` and in a revision. What a `Submission` has by the same name is
    taken over.

    order: position in submission order, unique. queued_seq: the cursor of its first event. prompt: the wire JSON with
    constants converted. outputs: recorded ui dicts by node id. cached: the nodes whose values were known at its start.
    failure: the data of the event that ended it. labels: set by its client. tenant: its owner, "" for the operator or
    without tenants. Times are Unix seconds.
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
    ended_s: float | None = None
    failure: Failure = NO_FAILURE
    cached: tuple[str, ...] = ()
    outputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    tenant: str = ""

    @property
    def ended(self) -> bool:
        """Whether the job has come to its end."""
        return self.ended_s is not None

    @property
    def feed(self) -> str | None:
        """The key of its client's event feed; None without a client, or with "", which is no socket's id."""
        return feed_of(self.tenant, self.client_id) if self.client_id else None

    def is_of(self, tenant: str) -> bool:
        """Whether a tenant can see it; "" is the operator, who sees all."""
        return tenant in ("", self.tenant)


@dataclass(frozen=True, slots=True)
class JobRow(Job):
    """A job's row.

    started_seq, ended_seq, output_seqs: the cursors of its started and ended events and of its outputs; its `cached`
    event has the cursor after started_seq. losses, lone_losses: replicas that it has lost, together with other jobs
    and alone.
    """

    started_seq: int | None = None
    ended_seq: int | None = None
    output_seqs: tuple[int, ...] = ()
    losses: int = 0
    lone_losses: int = 0


def feed_of(tenant: str, client_id: str) -> str:
    """Return the key of a client's event feed, which is distinct for clients of different tenants."""
    return f"{tenant}\n{client_id}" if tenant else client_id


@dataclass(frozen=True, slots=True)
class Claims:
    """What a new job claims in the transaction that inserts it; ClaimRefusedError if it cannot.

    key: an idempotency key, or None. assets: ids of assets that must not be deleted before the job has ended.
    """

    key: str | None = None
    assets: tuple[str, ...] = ()


NO_CLAIMS = Claims()


@dataclass(frozen=True, slots=True)
class Submission:
    """A validated job on its way to the database.

    prompt: the wire JSON with constants converted. targets: the output nodes to run. number: the client's own queue
    number, None for the next one; front: the next one, negated. id_is_new: no earlier submission can have this id.
    labels: the client's labels. claims: the keys and files that it claims. tenant: as Job's.
    """

    job_id: str
    prompt: Mapping[str, Any]
    targets: tuple[str, ...]
    client_id: str | None = None
    extra_data: Mapping[str, Any] = field(default_factory=dict)
    number: float | None = None
    front: bool = False
    id_is_new: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    claims: Claims = NO_CLAIMS
    tenant: str = ""


def made_from(kind: type[T], source: Any, **others: Any) -> T:
    """Return an object of a dataclass: with these fields, and those that `source` has by the same names."""
    names = (field.name for field in fields(kind) if field.name not in others)  # type: ignore[arg-type]
    return kind(**{name: getattr(source, name) for name in names if hasattr(source, name)}, **others)


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
    """A job has started. cached: the nodes whose values are known; their event has the next cursor.

    The fields of this change, of JobCached, JobLostReplica and JobEnded are the columns that they set.
    """

    job_id: str
    started_s: float
    started_seq: int
    cached: tuple[str, ...] = ()
    state: JobState = "running"


@dataclass(frozen=True, slots=True)
class JobLostReplica:
    """The number of replicas that a job has lost; see JobRow. Stored, so that a restart does not reset it."""

    job_id: str
    losses: int
    lone_losses: int


@dataclass(frozen=True, slots=True)
class OutputRecorded:
    """An output node of the job is done: it is skipped when the job is planned again."""

    job_id: str
    node_id: str
    ui: Mapping[str, Any]
    seq: int


@dataclass(slots=True, eq=False)
class CountersReserved:
    """Reserves consecutive counters of `key` for files that a node saves. The transaction fills in which.

    at_least: the lowest allowed counter; 0 for the next one, and the result is 0 if none was reserved yet, as
    uncounted files may exist. The same (job, node, key) gets the same counters again if they are high enough. first:
    the first counter. again: whether they were reserved before; None until a transaction has set it. A retry after a
    lost COMMIT finds what the first try reserved, so the value of the first try stays.
    """

    job_id: str
    node_id: str
    key: str
    at_least: int
    contents: Contents
    first: int = 0
    again: bool | None = None


@dataclass(frozen=True, slots=True)
class JobCached:
    """More nodes of a running job need not run. cached: all of them, as JobStarted's."""

    job_id: str
    cached: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class JobEnded:
    """A job has ended. failure: of its error, or its position when it was cancelled."""

    job_id: str
    state: Ending
    ended_s: float
    ended_seq: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class TenantUsed:
    """The total GPU time of a tenant in a day; written with a job's end. day: of UTC, since 1970."""

    job_id: str
    tenant: str
    day: int
    gpu_s: float


@dataclass(frozen=True, slots=True)
class OwnerCharged:
    """The unforgiven losses of an owner of jobs: the count, the time of the last, and until when its jobs wait.

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
    """A query for a list of jobs. Jobs that were cancelled before they started are in no list.

    states: of the database: queued, running, success, error, cancelled; only the last three in a list by ends. limit
    None: all from offset. workflow_id: only jobs of this saved workflow. brief: without prompts, and of extra_data only
    the id of the saved workflow. tenant: only jobs that it can see. start: the order, or cursor, that offset
    counts from; None for the first. Unused if jobs are sorted by their duration.
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
    """The number of jobs of one tenant and state in one stretch of the list by creation and of that by end.

    ended: None for unfinished jobs, which are in no list by end.
    """

    tenant: str
    state: str
    created: int
    ended: int | None
    jobs: int = 1


Change: TypeAlias = (
    JobAccepted
    | JobStarted
    | JobCached
    | JobLostReplica
    | CountersReserved
    | OutputRecorded
    | JobEnded
    | TenantUsed
    | OwnerCharged
)

JobKey: TypeAlias = tuple[str, int | None]
"""The key of a job's state: its id, and the cursor of its end, after which nothing changes."""
