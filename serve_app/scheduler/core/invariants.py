"""Checks that the machine's state is consistent, as it must be after every event.

Tests run it after each event. The scheduler runs it every half minute and logs a violation with the job's trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from serve_app.graph.plan import TaskId
from serve_app.scheduler.core.ready_queue import ReadyQueue
from serve_app.scheduler.core.records import JobRecord, id_of
from serve_app.scheduler.core.replicas import ReplicaRecord
from serve_app.scheduler.core.results import Results


def violations(
    jobs: Mapping[str, JobRecord],
    replicas: Mapping[str, ReplicaRecord],
    queues: Sequence[ReadyQueue],
    results: Results,
    waiters: Mapping[str, Sequence[TaskId]],
    blocked: Callable[[JobRecord], bool],
) -> Iterator[tuple[str, str]]:
    """Yield (job id, violation). blocked: whether a job must not start."""
    running = {task_id: name for name, replica in replicas.items() for task_id in replica.running}
    queued = {(entry.job_id, entry.task_index) for queue in queues for entry in queue}
    current = {id_of(job, task) for job in jobs.values() for task in job.tasks if task.state == "running"}
    for job_id, job in jobs.items():
        if not job.missing:
            yield job_id, "every output is recorded and the job has not ended"
        if all(task.state == "done" for task in job.tasks):
            yield job_id, "every task is done and outputs are missing"
        elif all(task.state in ("done", "waiting") for task in job.tasks) != blocked(job):
            yield job_id, "it must not start and a task is ready" if blocked(job) else "no task is ready or runs"
        for task in job.tasks:
            if task.state == "running" and running.get(id_of(job, task)) != task.replica_id:
                yield job_id, f"task {task.plan.index} runs on {task.replica_id}, which does not know of it"
            if task.state == "ready" and (job_id, task.plan.index) not in queued:
                yield job_id, f"task {task.plan.index} is ready but in no queue"
    for signature, owner in results.owners().items():
        if owner not in running:
            yield owner.job_id, f"a task that runs nowhere is to compute {signature}"
    for signature, waiting in waiters.items():
        for task_id in current.intersection(waiting):
            job = jobs[task_id.job_id]
            makers = [t for t in job.tasks if any(job.plan.signatures[n] == signature for n in t.plan.nodes)]
            if (
                not results.holders(signature)
                and results.owner(signature) in (None, task_id)
                and all(maker.state == "done" for maker in makers)
            ):
                yield task_id.job_id, f"task {task_id.index} waits for {signature}, which no replica has or computes"
