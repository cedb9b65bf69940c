"""Partitions a job into tasks: connected groups of nodes, each evaluated on one replica.

A pool is a set of equal replicas; its node classes are configured. A node that uses RUNTIME needs a pool with models;
any other node joins a neighbour if that saves a transfer. Pure: no replica, no Ray.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TypeAlias

from serve_app.config.pool import EVERY_CLASS, PoolConfig
from serve_app.errors import InvalidGraphError, Problem
from serve_app.graph.dynamic import opened
from serve_app.graph.graph import Graph, Node
from serve_app.graph.spec import NodeSpec

WIDTH = 64
"""How many unconnected groups of one pool and level are tasks of their own; more are spread over these. Every task
carries its job's prompt, so a number of tasks proportional to the job's size would cost its square.
"""

TASKS_LIMIT = 1000
"""How many tasks a job may be cut into, for the same reason; only a graph made for it changes pools so often."""


OPTIMIZATIONS = "optimizations"
"""The member of a job's extra_data, and of its files, that names its pools' settings by which pictures differ."""


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """One connected group of nodes for one pool, or several groups in large jobs.

    targets: the nodes that are always evaluated: output nodes, and nodes whose values other tasks always need. Within
    the task evaluation is on demand, so `nodes` are those that may run. needs: nodes of other tasks whose values are
    always needed. A task without targets runs when a lazy input needs one of its nodes.
    """

    index: int
    pool: str
    nodes: tuple[str, ...]
    targets: tuple[str, ...]
    needs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A job's graph, its outputs, each node's signature, and its tasks in topological order.

    certain: the nodes that always run, as no lazy input lies between them and an output. twins: the nodes of each
    signature that several nodes have.
    """

    graph: Graph
    outputs: tuple[str, ...]
    signatures: Mapping[str, str]
    tasks: tuple[TaskPlan, ...]
    certain: frozenset[str]
    twins: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskId:
    """One attempt at one task of one job. Answers that carry an older attempt are dropped."""

    job_id: str
    index: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Task:
    """A task as sent to a replica: the nodes that it may run, the targets, and the sources of other values.

    nodes: by id, including none of other pools. signatures: of every node of the prompt, as a subgraph may link to any.
    remote: signatures that another replica has or is computing; the replica requests them from the scheduler. prompt,
    extra_data: the submission's own, for hidden inputs (PROMPT, EXTRA_PNGINFO). created_s: the job's Unix time. tenant:
    the owner of the job and of the files that its nodes see; "" on a server without tenants. client_id: of the
    submission. deferrable: no client waits for an event of its end, so the task and the report of its end may be
    delayed and batched.
    """

    id: TaskId
    nodes: Mapping[str, Node]
    targets: tuple[str, ...]
    signatures: Mapping[str, str]
    remote: frozenset[str]
    prompt: Mapping[str, object]
    extra_data: Mapping[str, object]
    created_s: float = 0.0
    tenant: str = ""
    deferrable: bool = False
    client_id: str | None = None

    @property
    def strict(self) -> bool:
        """Whether it shares no computation with others; as `is_strict`."""
        return is_strict(self.extra_data)


def is_strict(extra_data: Mapping[str, object]) -> bool:
    """Whether a job requests results that do not depend, to the bit, on other jobs: {"strict": true}."""
    return extra_data.get("strict") is True


@dataclass(frozen=True, slots=True)
class Pool:
    """A set of equal replicas, as the planner sees it.

    runtime: its replicas have models. accepts: class-name patterns (`fnmatch`), e.g. ("*",) or ("KSampler*",); a pack's
    classes also match its name, "custom_nodes.NAME". whole: it takes whole graphs only (`destination.py`), and is
    preferred for those with a class that `prefers` matches.
    """

    name: str
    runtime: bool
    accepts: tuple[str, ...] = EVERY_CLASS
    whole: bool = False
    prefers: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: PoolConfig) -> Pool:
        """Return a pool of the configuration."""
        return cls(config.name, config.runtime, config.accepts, config.comfyui is not None, config.prefers)


def plan(
    graph: Graph,
    specs: Mapping[str, NodeSpec],
    outputs: Sequence[str],
    signatures: Mapping[str, str],
    pools: Sequence[Pool],
) -> Plan:
    """Partition the outputs' ancestors into as few tasks as the pools allow; each node is in exactly one.

    Errors: InvalidGraphError for nodes that no pool takes, and for more than TASKS_LIMIT tasks.
    """
    order = graph.ancestors(outputs)
    candidates = {node_id: _candidates(graph.nodes[node_id], specs, pools) for node_id in order}
    homeless = [graph.nodes[node_id] for node_id in order if not candidates[node_id]]
    if homeless:
        raise InvalidGraphError([_no_pool(node, specs, pools) for node in homeless])
    home = _homes(graph, specs, order, candidates, pools)
    group_of = _groups(graph, order, home)
    members: dict[Group, list[str]] = {}
    needs: dict[Group, dict[str, None]] = {}
    wanted = set(outputs)
    certain = _certain(graph, specs, outputs)
    for node_id in order:
        members.setdefault(group_of[node_id], []).append(node_id)
        for name, link in graph.nodes[node_id].links():
            now = node_id in certain and not _is_lazy(specs, graph.nodes[node_id], name)
            if now and group_of[link.node_id] != group_of[node_id]:
                needs.setdefault(group_of[node_id], {})[link.node_id] = None
                wanted.add(link.node_id)
    if len(members) > TASKS_LIMIT:
        message = f"the graph changes pools too often: cut into {len(members)} tasks, and {TASKS_LIMIT} are allowed"
        raise InvalidGraphError([Problem("too_many_tasks", message)])
    tasks = []
    for index, group in enumerate(sorted(members, key=lambda group: group[0])):
        nodes = tuple(members[group])
        targets = tuple(node_id for node_id in nodes if node_id in wanted)
        tasks.append(TaskPlan(index, home[nodes[0]], nodes, targets, tuple(needs.get(group, ()))))
    return Plan(graph, tuple(outputs), signatures, tuple(tasks), certain, _twins(order, signatures))


def _twins(nodes: Iterable[str], signatures: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for node_id in nodes:
        if node_id in signatures:
            found.setdefault(signatures[node_id], []).append(node_id)
    return {signature: tuple(alike) for signature, alike in found.items() if len(alike) > 1}


def _certain(graph: Graph, specs: Mapping[str, NodeSpec], outputs: Sequence[str]) -> frozenset[str]:
    """Return the nodes that the outputs reach without a lazy input."""
    found: set[str] = set()
    stack = list(outputs)
    while stack:
        node_id = stack.pop()
        if node_id not in found:
            found.add(node_id)
            node = graph.nodes[node_id]
            stack += [link.node_id for name, link in node.links() if not _is_lazy(specs, node, name)]
    return frozenset(found)


def _is_lazy(specs: Mapping[str, NodeSpec], node: Node, name: str) -> bool:
    declared = opened(specs[node.class_type], node.inputs).input(name)
    return declared is not None and declared.lazy


def takes(pool: Pool, spec: NodeSpec) -> bool:
    """Whether the pool's replicas run this class; a pattern may also match the pack that it comes from."""
    names = (spec.class_type, spec.python_module)
    return (pool.runtime or not spec.runtime) and any(fnmatchcase(n, p) for n in names for p in pool.accepts)


def takes_pack(pool: Pool, python_module: str, specs: Iterable[NodeSpec]) -> bool:
    """Whether the pool handles requests for a node pack: it accepts the pack by name, or one of its classes."""
    named = any(fnmatchcase(python_module, pattern) for pattern in pool.accepts)
    return named or any(spec.python_module == python_module and takes(pool, spec) for spec in specs)


def _candidates(node: Node, specs: Mapping[str, NodeSpec], pools: Sequence[Pool]) -> list[str]:
    return [pool.name for pool in pools if takes(pool, specs[node.class_type])]


def _no_pool(node: Node, specs: Mapping[str, NodeSpec], pools: Sequence[Pool]) -> Problem:
    needs = ", and it needs one with models" if specs[node.class_type].runtime else ""
    have = "; ".join(f"{pool.name} accepts {', '.join(pool.accepts)}" for pool in pools) or "there is none"
    return Problem("no_pool", f"no pool takes this class{needs}: {have}", node_id=node.id, class_type=node.class_type)


def _homes(
    graph: Graph,
    specs: Mapping[str, NodeSpec],
    order: Sequence[str],
    candidates: Mapping[str, Sequence[str]],
    pools: Sequence[Pool],
) -> dict[str, str]:
    """Return each node's pool: one for all if possible, else by its need of models, then a consumer's, then a
    producer's.
    """
    for pool in pools:
        if all(pool.name in candidates[node_id] for node_id in order):
            return dict.fromkeys(order, pool.name)
    home = {n: candidates[n][0] for n in order if specs[graph.nodes[n].class_type].runtime}
    consumers: dict[str, list[str]] = {node_id: [] for node_id in order}
    for node_id in order:
        for _, link in graph.nodes[node_id].links():
            consumers[link.node_id].append(node_id)
    for node_id in reversed(order):
        beside = [home[c] for c in consumers[node_id] if c in home and home[c] in candidates[node_id]]
        if node_id not in home and beside:
            home[node_id] = beside[0]
    for node_id in order:
        if node_id not in home:
            producers = [home[link.node_id] for _, link in graph.nodes[node_id].links()]
            beside = [pool for pool in producers if pool in candidates[node_id]]
            home[node_id] = (beside or candidates[node_id])[0]
    return home


Group: TypeAlias = tuple[int, str, int]
"""A task's key: its level, its pool, and its index there."""


def _groups(graph: Graph, order: Sequence[str], home: Mapping[str, str]) -> dict[str, Group]:
    """Return each node's task; levels grow along every link between two tasks.

    A node's level is the number of changes of pool on the way to it. Linked nodes of one pool and level are one task,
    so a link between tasks always goes to a higher level, and there are no cycles between tasks.
    """
    level: dict[str, int] = {}
    for node_id in order:
        sources = [link.node_id for _, link in graph.nodes[node_id].links()]
        level[node_id] = max((level[s] + (home[s] != home[node_id]) for s in sources), default=0)
    # A node without inputs could run early, but joins its first consumer's task: raise it to that level.
    latest: dict[str, int] = {}
    for node_id in reversed(order):
        level[node_id] = latest.get(node_id, level[node_id])
        for _, link in graph.nodes[node_id].links():
            limit = level[node_id] - (home[link.node_id] != home[node_id])
            latest[link.node_id] = min(latest.get(link.node_id, limit), limit)
    name = {node_id: node_id for node_id in order}

    def find(node_id: str) -> str:
        while name[node_id] != node_id:
            name[node_id] = node_id = name[name[node_id]]
        return node_id

    for node_id in order:
        for _, link in graph.nodes[node_id].links():
            if level[link.node_id] == level[node_id] and home[link.node_id] == home[node_id]:
                name[find(link.node_id)] = find(node_id)
    runs: dict[tuple[int, str], dict[str, int]] = {}
    groups: dict[str, Group] = {}
    for node_id in order:
        beside = runs.setdefault((level[node_id], home[node_id]), {})
        number = beside.setdefault(find(node_id), len(beside) % WIDTH)
        groups[node_id] = (level[node_id], home[node_id], number)
    return groups
