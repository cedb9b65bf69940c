"""Chooses a workflow's destination: the shared pools, or one pool that takes whole graphs only.

Pure: knows classes, not replicas. `validate` checks the constants for a destination.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from serve_app.config.pool import SHARED
from serve_app.errors import InvalidGraphError, Problem, short_repr
from serve_app.graph.graph import Graph
from serve_app.graph.plan import Plan, Pool, TaskPlan
from serve_app.graph.spec import NodeSpec


def destinations(
    graph: Graph, known: Mapping[str, Mapping[str, NodeSpec]], pools: Sequence[Pool], asked: str | None = None
) -> list[str]:
    """Return a workflow's possible destinations, the best first: `asked`, or all that have all of its classes.

    known: node classes by destination, without pools whose classes are unknown. A pool that takes whole graphs comes
    first if it prefers a class of the workflow, else last. Errors: InvalidGraphError with the pools that lack each
    class; none if there is only one destination, whose validation is more detailed.
    """
    whole = [pool for pool in pools if pool.whole]
    if asked is not None:
        return [asked if any(pool.name == asked for pool in whole) else SHARED]
    if not whole:
        return [SHARED]
    classes = {node.class_type for node in graph.nodes.values()}
    able = [name for name, specs in known.items() if specs and classes <= specs.keys()]
    preferred = [p.name for p in whole if p.name in able and _prefers(p, classes, known[p.name])]
    rest = [name for name in [SHARED, *(p.name for p in whole)] if name in able and name not in preferred]
    if not able:
        raise InvalidGraphError(list(_missing(graph, known, pools)))
    return preferred + rest


def plan_whole(graph: Graph, outputs: Sequence[str], signatures: Mapping[str, str], pool: str) -> Plan:
    """Return the plan of a job that one replica runs whole. signatures: unique ones, so that no result is shared."""
    order = tuple(graph.ancestors(outputs))
    task = TaskPlan(0, pool, order, tuple(outputs), ())
    return Plan(graph, tuple(outputs), signatures, (task,), frozenset(order))


def own_signatures(graph: Graph, job_id: str) -> dict[str, str]:
    """Return signatures unique to a job."""
    return {node_id: f"{job_id}/{node_id}" for node_id in graph.nodes}


def _prefers(pool: Pool, classes: set[str], specs: Mapping[str, NodeSpec]) -> bool:
    names = {name for c in classes for name in (c, specs[c].python_module)}
    return any(fnmatchcase(name, pattern) for name in names for pattern in pool.prefers)


def _missing(graph: Graph, known: Mapping[str, Mapping[str, NodeSpec]], pools: Sequence[Pool]) -> list[Problem]:
    """Return a problem for each class that some destination lacks, as none has all of them."""
    shared = ", ".join(pool.name for pool in pools if not pool.whole)
    names = {name: shared if name == SHARED else name for name in known if name != SHARED or shared}
    problems = []
    for class_type, node in {node.class_type: node for node in reversed(list(graph.nodes.values()))}.items():
        lack = [there for name, there in names.items() if class_type not in known[name]]
        have = [there for name, there in names.items() if class_type in known[name]]
        if lack:
            where = f"pool {'; pool '.join(have)} has it" if have else "no pool has it"
            message = (
                f"no pool has all classes of the workflow: {short_repr(class_type)} is lacked by {'; '.join(lack)}"
            )
            extra = {"node_id": node.id, "class_type": class_type, "node_title": class_type}
            problems.append(
                Problem("missing_node_type", f"{message}; {where}", node_id=node.id, class_type=class_type, extra=extra)
            )
    return problems
