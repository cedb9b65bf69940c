"""Which replicas are kept for suspects: jobs that may be what ended the replicas they ran on (docs/decisions/0014).

Decided anew whenever tasks are given out, from records alone; all that is remembered is `ReplicaRecord.quarantined`.
"""

from __future__ import annotations

from collections.abc import Mapping

from serve_app.scheduler.core.records import JobRecord
from serve_app.scheduler.core.replicas import LeastBusy, PoolReplicas, ReplicaRecord, Replicas


def keep_for(
    job: JobRecord, pool: PoolReplicas, replicas: Replicas, jobs: Mapping[str, JobRecord]
) -> ReplicaRecord | None:
    """Return the replica of the pool that is kept for a suspect, others' tasks perhaps still to end there.

    None: it must wait. At most half of a pool, but one replica in any case, is kept. Of the jobs that need several
    pools one is in quarantine at a time: two could each wait for a replica that is kept for the other.
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
    """Open replicas on which nothing of their suspect runs, be it over or about to begin.

    Which one is cleared for the first suspect that waits is then decided anew: the one that is clearest by now.
    """
    for record in list(pool.quarantined.values()):
        if not any(task_id.job_id == record.quarantined for task_id in record.running):
            replicas.keep(record, None)


def open_to_awaited(pool: PoolReplicas, jobs: Mapping[str, JobRecord]) -> LeastBusy:
    """Return the replicas that a task may go to which a running one waits for.

    Where all are kept, those whose suspect waits for a replica to clear: it may be this task that it waits for.
    """

    def waits(job_id: str | None) -> bool:
        job = jobs.get(job_id or "")
        return job is not None and any(task.state == "ready" for task in job.tasks)

    return pool.open if len(pool.open) else LeastBusy(r for r in pool.of_suspects() if waits(r.quarantined))
