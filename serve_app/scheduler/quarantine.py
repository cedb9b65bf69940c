"""Which replicas are kept for suspects: jobs that may be what ended the replicas they ran on (docs/decisions/0014).

Decided anew whenever tasks are given out, from records alone; all that is remembered is `ReplicaRecord.quarantined`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from serve_app.scheduler.placement import ReplicaRecord
from serve_app.scheduler.records import JobRecord


def keep_for(
    job: JobRecord, pool: Sequence[ReplicaRecord], everywhere: Iterable[ReplicaRecord], jobs: Mapping[str, JobRecord]
) -> ReplicaRecord | None:
    """Return the replica of the pool that is kept for a suspect, others' tasks perhaps still to end there.

    None: it must wait. At most half of a pool, but one replica in any case, is kept. Of the jobs that need several
    pools one is in quarantine at a time: two could each wait for a replica that is kept for the other.
    """
    job_id = job.row.job_id
    if own := next((r for r in pool if r.quarantined == job_id), None):
        return own
    others = [r for r in pool if r.quarantined is None]
    if not others or len(pool) - len(others) >= max(1, len(pool) // 2):
        return None
    if job.spans_pools:
        kept = {r.quarantined for r in everywhere if r.quarantined not in (None, job_id)}
        if any(other not in jobs or jobs[other].spans_pools for other in kept if other is not None):
            return None
    chosen = min(others, key=lambda r: (len(r.running), r.info.replica_id))
    chosen.quarantined = job_id
    return chosen


def end(replicas: Iterable[ReplicaRecord]) -> None:
    """Open replicas on which nothing of their suspect runs, be it over or about to begin.

    Which one is cleared for the first suspect that waits is then decided anew: the one that is clearest by now.
    """
    for replica in replicas:
        if not any(task_id.job_id == replica.quarantined for task_id in replica.running):
            replica.quarantined = None


def open_to_awaited(pool: Sequence[ReplicaRecord], jobs: Mapping[str, JobRecord]) -> list[ReplicaRecord]:
    """Return the replicas that a task may go to which a running one waits for.

    Where all are kept, those whose suspect waits for a replica to clear: it may be this task that it waits for.
    """

    def waits(job_id: str) -> bool:
        return job_id in jobs and any(task.state == "ready" for task in jobs[job_id].tasks)

    return [r for r in pool if r.quarantined is None] or [r for r in pool if r.quarantined and waits(r.quarantined)]
