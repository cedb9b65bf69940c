"""The machine's inputs (`MachineEvent`) and outputs (`Command`), as plain data; `machine.py` has the rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from serve_app.events import Event, Failure
from serve_app.graph.plan import Plan
from serve_app.scheduler.protocol.messages import Message, ReplicaInfo, Report
from serve_app.store.database.changes import NO_CLAIMS, Change, Claims, JobRow
from serve_app.store.tenants.pauses import Pause


@dataclass(frozen=True, slots=True)
class JobArrived:
    """A new job, or after a restart an unfinished one. The plan omits outputs that the row has recorded."""

    row: JobRow
    plan: Plan
    claims: Claims = NO_CLAIMS


@dataclass(frozen=True, slots=True)
class CancelAsked:
    job_id: str


@dataclass(frozen=True, slots=True)
class JobRefused:
    """A job cannot continue: the database refuses its changes, it cannot be planned again, or its time is up.

    failure: as JobEnded's. since_s: the Unix time at which it began, of a job that the machine does not know.
    """

    job_id: str
    failure: Failure
    since_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ReplicaJoined:
    """An empty replica has registered, on a host. If its id was known, that earlier process is gone."""

    info: ReplicaInfo
    host: str = ""


@dataclass(frozen=True, slots=True)
class ReplicaLeft:
    """A replica leaves as requested; nothing that ran there is to blame."""

    replica_id: str


@dataclass(frozen=True, slots=True)
class ReplicaLost:
    """A replica has died or does not answer. checking: it also ran a remote validation, which may be the cause.

    why: the reason that it reported itself.
    """

    replica_id: str
    checking: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True)
class Reported:
    replica_id: str
    report: Report


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Time has passed without another event, so a task may have waited long enough for a busy replica."""


@dataclass(frozen=True, slots=True)
class PausesChanged:
    """The complete set of pauses from now on."""

    pauses: frozenset[Pause]


@dataclass(frozen=True, slots=True)
class FilesGone:
    """The ui dicts of output nodes with these signatures name files that are deleted."""

    signatures: tuple[str, ...]


MachineEvent: TypeAlias = (
    JobArrived
    | CancelAsked
    | JobRefused
    | ReplicaJoined
    | ReplicaLeft
    | ReplicaLost
    | Reported
    | TimePassed
    | PausesChanged
    | FilesGone
)


@dataclass(frozen=True, slots=True)
class Persist:
    """Make the change durable before any later command is executed."""

    change: Change


@dataclass(frozen=True, slots=True)
class Send:
    replica_id: str
    message: Message


@dataclass(frozen=True, slots=True)
class Publish:
    event: Event


@dataclass(frozen=True, slots=True)
class PublishToClient:
    """Publish an event outside any job to one client."""

    client_id: str
    event: Event


Command: TypeAlias = Persist | Send | Publish | PublishToClient
