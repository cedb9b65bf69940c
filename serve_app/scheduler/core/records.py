"""The machine's records of unfinished jobs and their tasks. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from serve_app.graph.graph import Origin
from serve_app.graph.plan import Plan, Task, TaskId, TaskPlan
from serve_app.scheduler.core.backoff import Owner, owner_of
from serve_app.scheduler.core.model_files import JobModelFiles
from serve_app.store.database.changes import JobRow

SHARED_LOSSES = 2
"""Losses of shared replicas after which a job is a suspect. Hosts fail more often than jobs kill replicas."""


Priority: TypeAlias = tuple[int, float, int]
"""A job's sort key, lowest first: negative priority, number, order of submission."""


def priority_of(extra_data: Mapping[str, Any]) -> int:
    """Return the priority in a submission's extra_data, 0 by default."""
    asked = extra_data.get("priority", 0)
    return asked if isinstance(asked, int) and not isinstance(asked, bool) else 0


@dataclass(slots=True)
class TaskRecord:
    """A task of an unfinished job. steps: the sampling steps of its nodes, at least 1, as a measure of its duration.

    stops: attempts that their replica stopped although the task was not cancelled.
    """

    plan: TaskPlan
    steps: int = 1
    attempt: int = 0
    stops: int = 0
    state: Literal["waiting", "ready", "running", "done"] = "waiting"
    replica_id: str | None = None


@dataclass(slots=True)
class JobRecord:
    """An unfinished job. row: as accepted; the other fields are its state since.

    files: the model files that its nodes name. missing: outputs that are not recorded. wanted: nodes that a running
    task has requested beyond the tasks' targets. executing: the running nodes in order of their start, each with the
    submitted node that it comes from. losses: replicas lost while other jobs ran there; lone_losses: while it ran there
    alone. alone: whether it runs alone because of its owner's losses. unexplained: whether it may have ended a replica
    on which other jobs ran. expected_s: the GPU seconds that it is expected to take. steps: how many each node has
    reported; reached: those of nodes whose replica is gone.
    """

    row: JobRow
    plan: Plan
    tasks: list[TaskRecord]
    started_s: float | None
    outputs: dict[str, Mapping[str, Any]]
    missing: set[str]
    files: JobModelFiles
    wanted: frozenset[str] = frozenset()
    executing: dict[str, str] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    cached: tuple[str, ...] = ()
    progress: dict[str, float] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)
    reached: dict[str, float] = field(default_factory=dict)
    losses: int = 0
    lone_losses: int = 0
    alone: bool = False
    unexplained: bool = False
    expected_s: float = 0.0

    @property
    def tenant(self) -> str:
        """As Job's."""
        return self.row.tenant

    @property
    def owner(self) -> Owner:
        """Who is charged if it ends a replica."""
        return owner_of(self.row)

    @property
    def suspect(self) -> bool:
        """Whether it may have ended its replicas, so that it must run in quarantine."""
        return self.alone or self.losses >= SHARED_LOSSES

    @property
    def spans_pools(self) -> bool:
        """Whether its tasks need replicas of several pools."""
        return len({task.plan.pool for task in self.tasks}) > 1

    @property
    def priority(self) -> Priority:
        """The lower, the sooner."""
        return (-priority_of(self.row.extra_data), self.row.number, self.row.order)

    @property
    def percent(self) -> int:
        """Work done, 0–99. A node counts by its `steps` constant, else once."""
        weights = {node_id: _steps(self.plan, node_id) for task in self.plan.tasks for node_id in task.nodes}
        total = sum(weights.values())
        done = sum(w * (1.0 if n in self.finished else self.progress.get(n, 0.0)) for n, w in weights.items())
        return 0 if total == 0 else min(99, int(100 * done / total))


def steps_of(plan: Plan, nodes: Iterable[str]) -> int:
    """Return the sum of the nodes' steps, at least 1."""
    return max(1, sum(_steps(plan, node_id) for node_id in nodes if "steps" in plan.graph.nodes[node_id].inputs))


def targets_of(job: JobRecord, task: TaskRecord) -> tuple[str, ...]:
    """Return the nodes that a task must evaluate: its targets, and those that another task has requested."""
    asked = job.wanted.intersection(task.plan.nodes)
    return (*task.plan.targets, *sorted(asked.difference(task.plan.targets)))


def elsewhere(job: JobRecord, task: TaskRecord, signature: str) -> list[str]:
    """Return the nodes of the job's other tasks that compute a value."""
    others = (node_id for other in job.tasks if other is not task for node_id in other.plan.nodes)
    return [node_id for node_id in others if job.plan.signatures[node_id] == signature]


def placed(node_id: str, origin: Origin | None) -> dict[str, Any]:
    """Return the fields by which events name a node. origin: of an expanded node."""
    if origin is None:
        return {"node": node_id}
    made = {"display_node": origin.display, "parent_node": origin.parent, "real_node": origin.real}
    return {"node": node_id, **made}


def id_of(job: JobRecord, task: TaskRecord) -> TaskId:
    """Return the task's current attempt."""
    return TaskId(job.row.job_id, task.plan.index, task.attempt)


def assignment(
    job: JobRecord, task: TaskRecord, targets: tuple[str, ...], remote: frozenset[str], *, room: bool
) -> Task:
    """Return the task as it is sent to its replica. room: whether the replica has another free slot."""
    return Task(
        id=id_of(job, task),
        nodes={node_id: job.plan.graph.nodes[node_id] for node_id in task.plan.nodes},
        targets=targets,
        signatures=job.plan.signatures,
        remote=remote,
        prompt=job.row.prompt,
        extra_data=job.row.extra_data,
        created_s=job.row.created_s,
        tenant=job.row.tenant,
        client_id=job.row.client_id,
        deferrable=job.row.feed is None and room,
    )


def _steps(plan: Plan, node_id: str) -> int:
    steps = plan.graph.nodes[node_id].inputs.get("steps", 1)
    return max(1, steps) if isinstance(steps, int) else 1
