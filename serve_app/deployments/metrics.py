"""The table of all metrics, and their export from plain counters to Ray's metrics.

Ray exports each on its host's metrics port as `ray_<name>`, counters with `_total`; Prometheus, the Ray dashboard and
Grafana read them there. docs/metrics.md and the Grafana dashboard are made from the table by k8s/generate.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ray.util import metrics as ray_metrics

from serve_app.replica.node_times import NodeTimes
from serve_app.scheduler.events.job_counters import JobCounters, read
from serve_app.scheduler.protocol.cluster_view import Load, TenantLoad

if TYPE_CHECKING:
    # It imports torch, which the scheduler's process has no need of.
    from serve_app.execution.stored_results import StoredResultCounters
    from serve_app.replica.models import Models

READ_S = 2.0
"""The interval at which counters are read. Ray exports every ten seconds."""
SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
"""Upper bounds of the buckets of every duration."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. unit: as Grafana spells it. labels: without those that Ray adds, such as the host's address."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: Literal["short", "s", "bytes"]
    labels: tuple[str, ...]
    help: str

    @property
    def exported(self) -> str:
        """Its name in Prometheus; a histogram's without _bucket, _sum or _count."""
        return f"ray_{self.name}_total" if self.kind == "counter" else f"ray_{self.name}"


METRICS = (
    Metric("serve_app_jobs", "gauge", "short", ("state",), "Jobs that have not ended, by state: queued or running"),
    Metric("serve_app_queue_oldest_seconds", "gauge", "s", (), "How long the job that has waited longest has waited"),
    Metric(
        "serve_app_last_backup_timestamp_seconds",
        "gauge",
        "s",
        (),
        "When `serve-app backup` last copied the database, in Unix time; nothing if it never did",
    ),
    Metric("serve_app_jobs_ended", "counter", "short", ("state",), "Jobs by how they ended: success, error, cancelled"),
    Metric("serve_app_job_wait_seconds", "histogram", "s", (), "From a job's submission to its start"),
    Metric("serve_app_job_run_seconds", "histogram", "s", (), "From a job's start to its end"),
    Metric("serve_app_replicas", "gauge", "short", ("pool",), "Replicas that have joined the scheduler"),
    Metric("serve_app_tasks", "gauge", "short", ("pool", "state"), "Tasks by state: waiting for a replica, or running"),
    Metric(
        "serve_app_backlog_seconds", "gauge", "s", ("pool",), "Expected time of the waiting tasks, one after another"
    ),
    Metric(
        "serve_app_nodes", "counter", "short", ("state",), "Nodes of jobs: cached, which need not run, or executing"
    ),
    Metric("serve_app_node_seconds", "histogram", "s", ("pool", "class_type"), "How long a node of a class takes"),
    Metric(
        "serve_app_result_hits", "counter", "short", ("pool", "replica"), "Results found in the cache when a task came"
    ),
    Metric("serve_app_evaluations", "counter", "short", ("pool", "replica"), "Model evaluations answered"),
    Metric("serve_app_forwards", "counter", "short", ("pool", "replica"), "Forwards run; each answers evaluations"),
    Metric("serve_app_forward_rows", "counter", "short", ("pool", "replica"), "Latents in those forwards"),
    Metric("serve_app_forward_seconds", "counter", "s", ("pool", "replica"), "Time spent in forwards"),
    Metric("serve_app_forward_failures", "counter", "short", ("pool", "replica"), "Forwards that raised"),
    Metric(
        "serve_app_forward_graphs",
        "counter",
        "short",
        ("pool", "replica", "event"),
        "CUDA graphs of forwards: recorded, replayed, failed to record, or dropped for want of memory",
    ),
    Metric("serve_app_weights_bytes", "gauge", "bytes", ("pool", "replica"), "Resident weights"),
    Metric("serve_app_weights_loads", "counter", "short", ("pool", "replica"), "Weights brought to the device"),
    Metric(
        "serve_app_weights_prefetches",
        "counter",
        "short",
        ("pool", "replica", "outcome"),
        "Weights loaded ahead of jobs: `begun`; since then `used`, or `dropped`, also for want of room",
    ),
    Metric("serve_app_weights_load_seconds", "counter", "s", ("pool", "replica"), "Time spent loading weights"),
    Metric("serve_app_weights_evictions", "counter", "short", ("pool", "replica"), "Weights evicted from the device"),
    Metric(
        "serve_app_weights_releases",
        "counter",
        "short",
        ("pool", "replica"),
        "Evictions made for activations, not for other weights",
    ),
    Metric("serve_app_host_weights_bytes", "gauge", "bytes", ("pool", "replica"), "Host memory of weights"),
    Metric("serve_app_host_weights_hits", "counter", "short", ("pool", "replica"), "Loads that found weights there"),
    Metric("serve_app_host_weights_misses", "counter", "short", ("pool", "replica"), "Loads that found none there"),
    Metric(
        "serve_app_streamed_weights_bytes",
        "counter",
        "bytes",
        ("pool", "replica"),
        "Weights copied to the device as networks ran that do not fit it",
    ),
    Metric("serve_app_vae_failures", "counter", "short", ("pool", "replica"), "VAE work the device had no memory for"),
    Metric(
        "serve_app_moved_tasks",
        "counter",
        "short",
        ("how",),
        "Tasks that went on on another replica: `handed_over`, or `lost` with theirs, which counts as an attempt",
    ),
    Metric("serve_app_repeated_steps", "counter", "short", (), "Steps that those tasks computed again"),
    Metric(
        "serve_app_run_states",
        "counter",
        "short",
        ("pool", "replica", "event"),
        "States of sampler runs: parts `saved`, saves that `failed`, runs `resumed` from one",
    ),
    Metric("serve_app_run_state_bytes", "counter", "bytes", ("pool", "replica"), "Bytes of saved states of runs"),
    Metric("serve_app_resumed_steps", "counter", "short", ("pool", "replica"), "Steps that resumed runs left out"),
    Metric(
        "serve_app_stored_results",
        "counter",
        "short",
        ("pool", "replica", "event"),
        "Results of nodes for after a restart: `kept`, `found`, and `failed` reads or writes",
    ),
    Metric("serve_app_stored_result_bytes", "counter", "bytes", ("pool", "replica"), "Bytes of results that were kept"),
    Metric("serve_app_vae_tiled", "counter", "short", ("pool", "replica"), "VAE work done in tiles because of that"),
    Metric(
        "serve_app_refusals",
        "counter",
        "short",
        ("limit",),
        "Requests or values that a limit refused or cut short, by its key",
    ),
    Metric("serve_app_limit_use", "gauge", "short", ("limit",), "How full a limit is in a process, 0 to 1"),
    Metric(
        "serve_app_tenant_jobs",
        "gauge",
        "short",
        ("tenant", "state"),
        "As `ray_serve_app_jobs`, of each tenant that has quotas of its own, and of all `other`",
    ),
    Metric("serve_app_tenant_gpu_seconds", "counter", "s", ("tenant",), "GPU-seconds that those tenants have used"),
    Metric("serve_app_tenant_lost_replicas", "counter", "short", ("tenant",), "Replicas that those tenants have ended"),
)


Figure: TypeAlias = tuple[str, float, dict[str, str]]
"""A metric's name, its value and its labels: a counter's total so far, a gauge's value, one observed duration."""


def scheduler_figures(load: Load, counters: JobCounters) -> Iterator[Figure]:
    """Yield the figures of the scheduler's load and counters. Durations are read from the counters, once."""
    yield "serve_app_jobs", load.queued, {"state": "queued"}
    yield "serve_app_jobs", load.running, {"state": "running"}
    yield "serve_app_queue_oldest_seconds", load.oldest_s, {}
    for pool in load.pools:
        yield "serve_app_replicas", pool.replicas, {"pool": pool.pool}
        yield "serve_app_tasks", pool.waiting, {"pool": pool.pool, "state": "waiting"}
        yield "serve_app_tasks", pool.running, {"pool": pool.pool, "state": "running"}
        yield "serve_app_backlog_seconds", pool.waiting_s, {"pool": pool.pool}
    for state, count in counters.ended.items():
        yield "serve_app_jobs_ended", count, {"state": state}
    for state, count in counters.nodes.items():
        yield "serve_app_nodes", count, {"state": state}
    for how, count in load.moved.items():
        yield "serve_app_moved_tasks", count, {"how": how}
    yield "serve_app_repeated_steps", load.repeated_steps, {}
    yield from (("serve_app_job_wait_seconds", seconds, {}) for seconds in read(counters.waits_s))
    yield from (("serve_app_job_run_seconds", seconds, {}) for seconds in read(counters.runs_s))


def backup_figures(last_s: float | None) -> Iterator[Figure]:
    """Yield the time of the last backup, if there was one."""
    if last_s is not None:
        yield "serve_app_last_backup_timestamp_seconds", last_s, {}


def node_figures(pool: str, replica: str, times: NodeTimes) -> Iterator[Figure]:
    """Yield the figures of a replica's nodes. Durations are read from them, once."""
    yield "serve_app_result_hits", times.held, {"pool": pool, "replica": replica}
    for class_type, seconds in times.read():
        yield "serve_app_node_seconds", seconds, {"pool": pool, "class_type": class_type}


def stored_figures(pool: str, replica: str, counters: StoredResultCounters) -> Iterator[Figure]:
    """Yield the figures of a replica's stored results."""
    labels = {"pool": pool, "replica": replica}
    for event, count in (("kept", counters.kept), ("found", counters.found), ("failed", counters.failures)):
        yield "serve_app_stored_results", count, {**labels, "event": event}
    yield "serve_app_stored_result_bytes", counters.bytes, labels


def model_figures(pool: str, replica: str, models: Models) -> Iterator[Figure]:
    """Yield the figures of a replica's engine and weights."""
    engine, weights, vaes = models.counters, models.loads, models.autoencoding
    labels = {"pool": pool, "replica": replica}
    yield "serve_app_evaluations", engine.evaluations, labels
    yield "serve_app_forwards", engine.forwards, labels
    yield "serve_app_forward_rows", engine.rows, labels
    yield "serve_app_forward_seconds", engine.seconds, labels
    yield "serve_app_forward_failures", engine.failures, labels
    for event, count in asdict(models.replays).items():
        yield "serve_app_forward_graphs", count, {**labels, "event": event}
    yield "serve_app_weights_bytes", weights.resident_bytes, labels
    yield "serve_app_weights_loads", weights.loads, labels
    yield "serve_app_weights_load_seconds", weights.seconds, labels
    yield "serve_app_weights_evictions", weights.evictions, labels
    yield "serve_app_weights_releases", weights.releases, labels
    yield "serve_app_host_weights_bytes", weights.host_bytes, labels
    yield "serve_app_host_weights_hits", weights.host_hits, labels
    yield "serve_app_host_weights_misses", weights.host_misses, labels
    yield "serve_app_streamed_weights_bytes", weights.streamed_bytes, labels
    yield "serve_app_vae_failures", vaes.failures, labels
    yield "serve_app_vae_tiled", vaes.in_tiles, labels
    states = models.run_states
    for event, count in (("saved", states.saves), ("failed", states.failures), ("resumed", states.resumed)):
        yield "serve_app_run_states", count, {**labels, "event": event}
    yield "serve_app_run_state_bytes", states.bytes, labels
    yield "serve_app_resumed_steps", states.steps, labels
    for outcome, count in asdict(models.prefetched).items():
        yield "serve_app_weights_prefetches", count, {**labels, "outcome": outcome}


def limit_figures(use: Mapping[str, float], refusals: Mapping[str, int]) -> Iterator[Figure]:
    """Yield the refusals by a process's limits, and their used share."""
    for key, count in dict(refusals).items():
        yield "serve_app_refusals", count, {"limit": key}
    for key, share in use.items():
        yield "serve_app_limit_use", share, {"limit": key}


def tenant_figures(loads: Mapping[str, TenantLoad]) -> Iterator[Figure]:
    """Yield the figures of tenants, by label."""
    for tenant, load in loads.items():
        yield "serve_app_tenant_jobs", load.queued, {"tenant": tenant, "state": "queued"}
        yield "serve_app_tenant_jobs", load.running, {"tenant": tenant, "state": "running"}
        yield "serve_app_tenant_gpu_seconds", load.gpu_s, {"tenant": tenant}
        yield "serve_app_tenant_lost_replicas", load.lost_replicas, {"tenant": tenant}


async def show(figures: Callable[[], Iterable[Figure]]) -> None:
    """Export this process's figures to Ray until cancelled."""
    meters = Meters()
    while True:
        for figure in figures():
            meters.show(*figure)
        await asyncio.sleep(READ_S)


class Meters:
    """The table's metrics as Ray's, in one process."""

    def __init__(self) -> None:
        self._metrics: dict[str, Any] = {metric.name: _made(metric) for metric in METRICS}
        self._totals: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}

    def show(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        """Export one figure to Ray. Errors: KeyError for a name or ValueError for a label that the table lacks."""
        metric = self._metrics[name]
        if isinstance(metric, ray_metrics.Gauge):
            metric.set(value, tags=dict(labels))
        elif isinstance(metric, ray_metrics.Histogram):
            metric.observe(value, tags=dict(labels))
        else:
            series = (name, frozenset(labels.items()))
            # Ray refuses to add nothing.
            if (more := value - self._totals.get(series, 0.0)) > 0:
                metric.inc(more, tags=dict(labels))
                self._totals[series] = value


def _made(metric: Metric) -> Any:
    if metric.kind == "histogram":
        return ray_metrics.Histogram(metric.name, metric.help, boundaries=list(SECONDS), tag_keys=metric.labels)
    kind = ray_metrics.Counter if metric.kind == "counter" else ray_metrics.Gauge
    return kind(metric.name, metric.help, tag_keys=metric.labels)
