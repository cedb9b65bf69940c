"""The cluster at one moment, as plain data: hosts, their GPUs, replicas, the load of the pools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


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
class PoolLoad:
    """One pool at one moment: its replicas, the tasks that wait for one, the tasks that run.

    waiting_s: how long those that wait are expected to take, one after another.
    """

    pool: str
    replicas: int
    waiting: int
    running: int
    waiting_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Load:
    """The queue at one moment. oldest_s: how long the job that has waited longest has waited, 0 if none waits.

    ended: jobs by how they ended, since this scheduler began.
    """

    queued: int = 0
    running: int = 0
    oldest_s: float = 0.0
    pools: tuple[PoolLoad, ...] = ()
    ended: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TenantLoad:
    """What a tenant has at one moment: jobs that wait and run.

    gpu_s: what it has used since this scheduler began; lost_replicas: how many replicas it has ended.
    """

    queued: int = 0
    running: int = 0
    gpu_s: float = 0.0
    lost_replicas: int = 0


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One replica, for operators: what it runs, what it holds, what to know of it.

    quarantined: the job that it is kept for alone. draining: whether it takes no more tasks, as it is to be ended.
    """

    replica_id: str
    pool: str
    slots: int
    running: int
    recipes: tuple[str, ...]
    quarantined: str | None = None
    notes: tuple[str, ...] = ()
    draining: bool = False


@dataclass(frozen=True, slots=True)
class ReplicaTrouble:
    """A replica that cannot work, and what it says of it. working: how many others of its pool take tasks."""

    replica_id: str
    pool: str
    why: str
    working: int


@dataclass(frozen=True, slots=True)
class BackedOff:
    """Whose jobs have ended replicas: a tenant, or without one a client. losses: those not forgiven yet.

    wait_s: for how long their next jobs wait. alone: whether those then run where no other job does.
    """

    tenant: str
    client_id: str | None
    losses: int
    wait_s: float
    alone: bool


@dataclass(frozen=True, slots=True)
class Paused:
    """What an operator holds back, and since when, as Unix time. name: "" for the queue."""

    kind: str
    name: str
    since_s: float


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The cluster at one moment: hosts (each once), replicas, seconds since the server started, what is wrong.

    paused: what is held back. backoffs: who has ended replicas.
    """

    hosts: tuple[HostStats, ...]
    replicas: tuple[ReplicaView, ...]
    uptime_s: float
    epoch: int
    load: Load = field(default_factory=Load)
    troubles: tuple[ReplicaTrouble, ...] = ()
    paused: tuple[Paused, ...] = ()
    backoffs: tuple[BackedOff, ...] = ()
