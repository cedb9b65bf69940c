"""Builds the `Failure` of a job that ends without success: its node, its reason and what had run."""

from __future__ import annotations

from dataclasses import replace

from serve_app.events import Failure
from serve_app.scheduler.core.records import JobRecord, TaskRecord, targets_of
from serve_app.scheduler.protocol.messages import TaskFailed


def failure_of(job: JobRecord, node_id: str = "", exception_type: str = "", message: str = "") -> Failure:
    """Return a failure at this node, else at the node that started last, with the nodes that have run."""
    if not node_id and job.executing:
        node_id = list(job.executing.values())[-1]
    node = job.plan.graph.nodes.get(node_id)
    class_type = "" if node is None else node.class_type
    executed, cached = tuple(sorted(job.finished)), tuple(sorted(job.cached))
    return Failure(node_id, class_type, exception_type, message, executed=executed, current_outputs=cached)


def of_node(job: JobRecord, report: TaskFailed) -> Failure:
    """Return the failure of a job whose node raised."""
    return replace(
        failure_of(job, report.node_id, report.exception_type, report.message),
        node=report.node_id,
        class_type=report.class_type,
        traceback=tuple(report.traceback),
        current_inputs=report.inputs,
    )


def of_cancelled(job: JobRecord) -> Failure:
    """Return the failure of a cancelled job: empty unless a node runs."""
    return replace(failure_of(job), current_outputs=()) if job.executing else Failure()


def of_lost_replicas(job: JobRecord, pool: str, why: str, wait_s: float) -> Failure:
    """Return the failure of a job that has lost too many replicas on which it ran alone.

    why: the reason of the last loss, if known. wait_s: how long its owner's next jobs wait because of it.
    """
    first = next(targets_of(job, task)[0] for task in job.tasks if task.state == "running")
    where = failure_of(job, "" if job.executing else first)
    message = (
        f"{where.class_type} {where.node} ran when the job lost the last of {job.lone_losses} replicas of pool "
        f"{pool} on which it ran alone; the process ended, hung or ran out of memory each time, "
        "so the job is given up"
    )
    if why:
        message += f". Of the last: {why}"
    if wait_s > 0:
        whose = "this tenant" if job.tenant else "this client"
        message += f". The next jobs of {whose} wait {wait_s:.0f} s because of it"
    return replace(where, exception_type="ReplicaLost", message=message)


def of_stops(job: JobRecord, task: TaskRecord) -> Failure:
    """Return what a job ends with one of whose tasks its replicas stopped too often."""
    message = f"the task with nodes {', '.join(task.plan.nodes)} was stopped by its replica {task.stops} times"
    return failure_of(job, targets_of(job, task)[0], "TaskStopped", f"{message} and is given up")
