"""What the machine is told (stimuli) and what it asks for (commands). Plain data; see `machine.py` for the rules."""

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
    """A new job, or after a restart an unfinished one. The plan leaves out outputs that the row has recorded."""

    row: JobRow
    plan: Plan
    claims: Claims = NO_CLAIMS


@dataclass(frozen=True, slots=True)
class CancelAsked:
    job_id: str


@dataclass(frozen=True, slots=True)
class JobRefused:
    """A job can never go on: the database will not take what it is to record, its end perhaps included; it can no
    longer be planned; its time is up. failure: as JobEnded's. since_s: when it began, if the machine does not know it.
    """

    job_id: str
    failure: Failure
    since_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ReplicaJoined:
    """A replica is here, empty. If its id was known, that earlier life is over."""

    info: ReplicaInfo


@dataclass(frozen=True, slots=True)
class ReplicaLeft:
    """A replica goes as it was told to; nothing that ran there is to blame."""

    replica_id: str


@dataclass(frozen=True, slots=True)
class ReplicaLost:
    """A replica has died or is silent. checking: it ran something beside its tasks that may be the cause.

    why: what it said of it itself.
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
    """Nothing else has happened: what waits for a busy replica may have waited for long enough."""


@dataclass(frozen=True, slots=True)
class PausesChanged:
    """What is held back from now on, all of it."""

    pauses: frozenset[Pause]


@dataclass(frozen=True, slots=True)
class FilesGone:
    """What output nodes of these signatures have shown names files that are no longer there."""

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
    """Make the change durable before carrying out any later command."""

    change: Change


@dataclass(frozen=True, slots=True)
class Send:
    replica_id: str
    message: Message


@dataclass(frozen=True, slots=True)
class Publish:
    event: Event


@dataclass(frozen=True, slots=True)
class Tell:
    """Let one client see an event of no job."""

    client_id: str
    event: Event


Command: TypeAlias = Persist | Send | Publish | Tell
