"""How a job is cut into tasks: connected runs of nodes, each evaluated on one replica.

A pool is a set of equal replicas; which classes it takes is configuration. A node that asks for RUNTIME needs a pool
with models; any other node goes with a neighbour where that saves a hop. Pure: no replica, no Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from serve_app.graph.graph import Graph, Node


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """One connected run of nodes for one pool.

    targets: the nodes to evaluate: output nodes, and nodes whose values other tasks need. Within the task evaluation is
    on demand, so `nodes` are those that may run. needs: nodes of other tasks whose values come in.
    """

    index: int
    pool: str
    nodes: tuple[str, ...]
    targets: tuple[str, ...]
    needs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A job's graph, what it must produce, each node's signature, and its tasks in an order that respects needs."""

    graph: Graph
    outputs: tuple[str, ...]
    signatures: Mapping[str, str]
    tasks: tuple[TaskPlan, ...]


@dataclass(frozen=True, slots=True)
class TaskId:
    """One attempt at one task of one job. Answers that carry an older attempt are dropped."""

    job_id: str
    index: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Task:
    """What a replica is sent: the nodes it may run, which to evaluate, and where other values come from.

    nodes: by id, including none of other pools. signatures: of `nodes` and of every node they link to.
    remote: signatures that another replica holds or is computing; the replica asks the scheduler for these.
    prompt, extra_data: the submission's own, for hidden inputs (PROMPT, EXTRA_PNGINFO).
    """

    id: TaskId
    nodes: Mapping[str, Node]
    targets: tuple[str, ...]
    signatures: Mapping[str, str]
    remote: frozenset[str]
    prompt: Mapping[str, object]
    extra_data: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Pool:
    """A set of equal replicas, as the planner sees it.

    runtime: its replicas hold models. accepts: class-name patterns (`fnmatch`), e.g. ("*",) or ("KSampler*",).
    """

    name: str
    runtime: bool
    accepts: tuple[str, ...] = ("*",)
