"""A snapshot of the cluster and its queue for operators and metrics. Changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from serve_app.scheduler.core.machine import Machine
from serve_app.scheduler.durability.lease import SchedulerLease
from serve_app.scheduler.events.job_counters import JobCounters
from serve_app.scheduler.events.published_jobs import PublishedJobs
from serve_app.scheduler.jobs.admission import AdmissionRules
from serve_app.scheduler.protocol.cluster_view import (
    BackedOff,
    ClusterView,
    HostStats,
    Load,
    Paused,
    PoolLoad,
    ReplicaTrouble,
    ReplicaView,
    TenantLoad,
)
from serve_app.scheduler.replicas.registry import ReplicaRegistry
from serve_app.store.tenants.pauses import Pause


class ClusterStatus:
    """The status of one scheduler's cluster. pools: their names. host: measures the scheduler's own host."""

    def __init__(
        self,
        pools: Sequence[str],
        rules: AdmissionRules,
        lease: SchedulerLease,
        machine: Machine,
        published: PublishedJobs,
        registry: ReplicaRegistry,
        counters: JobCounters,
        host: Callable[[], HostStats],
    ) -> None:
        self._pools = pools
        self._rules = rules
        self._lease = lease
        self._machine = machine
        self._published = published
        self._registry = registry
        self._counters = counters
        self._host = host

    def view(self, paused: Mapping[Pause, float], drained: Mapping[Pause, float]) -> ClusterView:
        """Return the whole snapshot. paused, drained: each with its Unix time."""
        replicas = tuple(
            ReplicaView(
                name,
                r.info.pool,
                r.info.slots,
                len(r.running),
                r.recipes,
                r.quarantined,
                r.info.notes,
                bool(r.draining),
                r.drained,
                r.host,
                r.info.rank_hosts,
            )
            for name, r in sorted(self._machine.replicas.items())
        )
        hosts = {stats.host: stats for stats in [self._host(), *self._registry.hosts()]}
        uptime_s = max(0.0, time.time() - self._lease.started_s)
        return ClusterView(
            tuple(hosts.values()),
            replicas,
            uptime_s,
            self._lease.epoch,
            self.load(),
            troubles=tuple(self.troubles()),
            paused=_listed(paused),
            backoffs=tuple(self.backoffs()),
            drained=_listed(drained),
        )

    def troubles(self) -> list[ReplicaTrouble]:
        """Return the replicas that cannot work: those that drain and those that cannot join."""
        draining = [(name, r.info.pool, r.draining) for name, r in self._machine.replicas.items() if r.draining]
        unable = [*draining, *self._registry.troubles()]
        return [ReplicaTrouble(name, pool, why, self._working(pool)) for name, pool, why in unable]

    def _working(self, pool: str) -> int:
        return sum(record.takes_tasks for record in self._machine.replicas.pool(pool).records.values())

    def backoffs(self) -> list[BackedOff]:
        """Return the owners with unforgiven losses of replicas."""
        now_s = time.time()
        return [
            BackedOff(tenant, client_id, losses.count, max(0.0, losses.until_s - now_s), losses.alone)
            for (tenant, client_id), losses in self._machine.backoff.owners()
        ]

    def load(self) -> Load:
        """Return the length of the queue and the load of the pools."""
        jobs = self._published.unended
        oldest = jobs.oldest_waiting()
        oldest_s = 0.0 if oldest is None else max(0.0, time.time() - oldest.row.created_s)
        pools = tuple(map(self._pool_load, self._pools))
        moves = self._machine.moves
        moved = {how: moves[how] for how in ("handed_over", "lost")}
        ended = dict(self._counters.ended)
        return Load(len(jobs.waiting), len(jobs.running), oldest_s, pools, ended, moved, moves["steps"])

    def _pool_load(self, pool: str) -> PoolLoad:
        demand = self._machine.backlog(pool)
        replicas = len(self._machine.replicas.pool(pool).records)
        return PoolLoad(pool, replicas, demand.waiting, demand.running, sum(demand.waiting_s.values()))

    def tenant_loads(self) -> dict[str, TenantLoad]:
        """Return the load of each tenant, as `Usage.loads`."""
        return self._machine.usage.loads(self._rules.quotas, self._machine.backoff.totals)

    def use(self) -> dict[str, float]:
        """Return the used share of the queue's and the events' limits, 0 to 1, by their key."""
        return {"max_queue": len(self._published.unended.waiting) / self._rules.max_queue, **self._published.use}


def _listed(pauses: Mapping[Pause, float]) -> tuple[Paused, ...]:
    return tuple(Paused(pause.kind, pause.name, since_s) for pause, since_s in pauses.items())
