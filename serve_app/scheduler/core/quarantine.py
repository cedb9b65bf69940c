"""Quarantine: replicas reserved for suspects, the jobs that may have ended replicas that they ran on (decision 14).

Decided again at every placement, from records alone. The only state is `ReplicaRecord.quarantined`.
"""

from __future__ import annotations

from collections.abc import Mapping

from serve_app.scheduler.core.records import JobRecord
from serve_app.scheduler.core.replicas import LeastBusy, PoolReplicas, ReplicaRecord, Replicas


def keep_for(
    job: JobRecord, pool: PoolReplicas, replicas: Replicas, jobs: Mapping[str, JobRecord]
) -> ReplicaRecord | None:
    """Return the replica of the pool that is reserved for a suspect, or None if it must wait.

    Other jobs' tasks may still run there. At most half of a pool is reserved, but at least one replica. Only one job
    that spans pools is in quarantine at a time: two could wait for each other's replicas.
    """
    job_id = job.row.job_id
    if own := next((record for record in pool.of_suspects() if record.quarantined == job_id), None):
        return own
    if not len(pool.open) or len(pool.quarantined) >= max(1, len(pool.records) // 2):
        return None
    if job.spans_pools:
        kept = {other for other in replicas.quarantined() if other != job_id}
        if any(other not in jobs or jobs[other].spans_pools for other in kept):
            return None
    [chosen] = pool.open.first(1)
    replicas.keep(chosen, job_id)
    return chosen


def end(pool: PoolReplicas, replicas: Replicas) -> None:
    """Release reserved replicas on which their suspect runs nothing.

    The least busy replica is then reserved for the first suspect that waits.
    """
    for record in list(pool.quarantined.values()):
        if not any(task_id.job_id == record.quarantined for task_id in record.running):
            replicas.keep(record, None)


def open_to_awaited(pool: PoolReplicas, jobs: Mapping[str, JobRecord]) -> LeastBusy:
    """Return the replicas that may run a task which a running task waits for.

    If all are reserved, those whose suspect waits for other jobs' tasks to end there: one of these may wait for this
    task.
    """

    def waits(job_id: str | None) -> bool:
        job = jobs.get(job_id or "")
        return job is not None and any(task.state == "ready" for task in job.tasks)

    return pool.open if len(pool.open) else LeastBusy(r for r in pool.of_suspects() if waits(r.quarantined))
