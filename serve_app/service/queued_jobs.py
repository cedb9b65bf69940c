"""The unfinished jobs as people see them in a list: owner, name, model, progress, place, about how long they wait."""

from __future__ import annotations

from dataclasses import dataclass

from serve_app.graph.first_model import first_model
from serve_app.graph.workflow_name import workflow_name
from serve_app.scheduler.protocol.client import JobProgress, QueueItem
from serve_app.scheduler.protocol.cluster_view import ClusterView
from serve_app.service.service import Service
from serve_app.store.tenants.tenants import tenant_of

SHOWN_JOBS = 200
"""The most jobs of one answer: those that run, then those that start next."""


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """An unfinished job. state: "running" or "pending". name: of its workflow, "" if nobody said. model: the first that
    it names, "" without one. nodes: how many it has. wait_s: about how long it waits for its start, None if it runs or
    that is not known.
    """

    job_id: str
    tenant: str
    client_id: str | None
    state: str
    created_s: float
    name: str
    model: str
    nodes: int
    progress: JobProgress | None
    wait_s: float | None


@dataclass(frozen=True, slots=True)
class QueuedJobs:
    """The first unfinished jobs, and how many there are. paused: what an operator has paused, such as "queue"."""

    jobs: tuple[QueuedJob, ...]
    running: int
    pending: int
    paused: tuple[str, ...]


async def queued_jobs(service: Service) -> QueuedJobs:
    """Return the jobs that a tenant, or the operator, sees: those that run, then those that start next."""
    view, cluster = await service.queue(), await service.cluster()
    items = [*(("running", item) for item in view.running), *(("pending", item) for item in view.pending)]
    jobs = [await _queued(service, cluster, state, item) for state, item in items[:SHOWN_JOBS]]
    return QueuedJobs(tuple(jobs), view.count.running, view.count.pending, tuple(map(str, view.paused)))


def expected_wait_s(cluster: ClusterView, place: int) -> float | None:
    """Return about how long the job at a place of the queue, from 1, waits; None where no replica or cost is known.

    Its share of the measured backlog, divided among the tasks that run at a time.
    """
    slots = sum(replica.slots for replica in cluster.replicas)
    backlog_s = sum(pool.waiting_s for pool in cluster.load.pools)
    return backlog_s / slots / cluster.load.queued * place if slots and backlog_s and cluster.load.queued else None


async def _queued(service: Service, cluster: ClusterView, state: str, item: QueueItem) -> QueuedJob:
    progress = await service.progress(item.job_id)
    place = None if progress is None or state == "running" else progress.position
    return QueuedJob(
        job_id=item.job_id,
        tenant=tenant_of(item.job_id),
        client_id=item.client_id,
        state=state,
        created_s=item.created_s,
        name=workflow_name(item.extra_data),
        model=first_model(item.prompt),
        nodes=len(item.prompt),
        progress=progress,
        wait_s=None if place is None else expected_wait_s(cluster, place),
    )
