"""A snapshot of the cluster as plain data: hosts, GPUs, replicas and the load of the pools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Gpu:
    """One physical GPU; memory in MB. uuid distinguishes equal cards."""

    uuid: str
    name: str
    vram_total_mb: int
    vram_free_mb: int
    vram_used_mb: int


@dataclass(frozen=True, slots=True)
class HostStats:
    """One host's memory in MB and its GPUs, as measured by a process there."""

    host: str
    ram_total_mb: int
    ram_used_mb: int
    ram_available_mb: int
    gpus: tuple[Gpu, ...]


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """The load of one pool: the numbers of its replicas, waiting tasks and running tasks.

    waiting_s: the expected duration of the waiting tasks, one after another.
    """

    pool: str
    replicas: int
    waiting: int
    running: int
    waiting_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Load:
    """The load of the queue. oldest_s: the longest waiting time of a job, 0 if none waits.

    Of this epoch: ended: jobs, by how they ended. moved: tasks that replicas have `handed_over`, or that were `lost`
    with one. repeated_steps: of the nodes that ran there.
    """

    queued: int = 0
    running: int = 0
    oldest_s: float = 0.0
    pools: tuple[PoolLoad, ...] = ()
    ended: Mapping[str, int] = field(default_factory=dict)
    moved: Mapping[str, int] = field(default_factory=dict)
    repeated_steps: int = 0


@dataclass(frozen=True, slots=True)
class TenantLoad:
    """The load of one tenant. gpu_s: used in this epoch; lost_replicas: ended by it in this epoch."""

    queued: int = 0
    running: int = 0
    gpu_s: float = 0.0
    lost_replicas: int = 0


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One replica, for operators. running: its tasks. recipes: its loaded weights. notes: such as packs that failed.

    quarantined: the job that has it alone. draining: whether it takes no more tasks, before its process ends; drained:
    whether it takes none because an operator wants that. host: the name of its host; rank_hosts: other hosts that have
    ranks of it.
    """

    replica_id: str
    pool: str
    slots: int
    running: int
    recipes: tuple[str, ...]
    quarantined: str | None = None
    notes: tuple[str, ...] = ()
    draining: bool = False
    drained: bool = False
    host: str = ""
    rank_hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReplicaTrouble:
    """A replica that cannot work, and why. working: the replicas of its pool that take tasks."""

    replica_id: str
    pool: str
    why: str
    working: int


@dataclass(frozen=True, slots=True)
class BackedOff:
    """An owner whose jobs have ended replicas: a tenant, or without one a client. losses: unforgiven ones.

    wait_s: how long its next jobs wait. alone: whether they then run in quarantine.
    """

    tenant: str
    client_id: str | None
    losses: int
    wait_s: float
    alone: bool


@dataclass(frozen=True, slots=True)
class Paused:
    """A pause or a drain, and its Unix time. name: "" for the queue."""

    kind: str
    name: str
    since_s: float


@dataclass(frozen=True, slots=True)
class ClusterView:
    """A snapshot of the cluster. hosts: each once. uptime_s: of the server. troubles: replicas that cannot work.

    backoffs: owners whose jobs have ended replicas. drained: replicas and hosts that an operator drains.
    """

    hosts: tuple[HostStats, ...]
    replicas: tuple[ReplicaView, ...]
    uptime_s: float
    epoch: int
    load: Load = field(default_factory=Load)
    troubles: tuple[ReplicaTrouble, ...] = ()
    paused: tuple[Paused, ...] = ()
    backoffs: tuple[BackedOff, ...] = ()
    drained: tuple[Paused, ...] = ()
