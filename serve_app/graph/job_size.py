"""How many sampling steps and pixels a job is for, told from its graph before it is accepted: quotas a job.

A whole number that comes by a link from a node which only gives out its constant (PrimitiveInt) is known too. What
comes from elsewhere is not, so a graph whose steps or sides it decides is refused where they are bounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from serve_app.errors import InvalidGraphError, Problem
from serve_app.graph.graph import Graph, Link, Node
from serve_app.graph.latent_size import SAMPLED
from serve_app.graph.spec import NodeSpec
from serve_app.limits import Quota, refused

STEPS, SIGMAS = "steps", "sigmas"
SIDES = ("width", "height")
REPEATS = ("batch_size", "length", "layers")
"""How many pictures of a size a node makes: of a batch, frames of a video, layers of a picture."""
CONSTANT, CONSTANTS = "value", frozenset(("PrimitiveInt",))
"""The input that nodes of these classes give out as it is."""
MOST = 10**15
"""As what a larger number counts, so that none has more digits than can be shown."""


def within_quota(graph: Graph, outputs: Iterable[str], specs: Mapping[str, NodeSpec], quota: Quota) -> None:
    """Refuse a validated graph that is for more than a tenant's quotas of one job allow. Errors: InvalidGraphError."""
    if quota.steps_a_job is None and quota.pixels_a_job is None:
        return
    nodes = [graph.nodes[node_id] for node_id in graph.ancestors(outputs)]
    if quota.steps_a_job is not None:
        _check("steps_a_job", quota.steps_a_job, _steps(graph, nodes))
    if quota.pixels_a_job is not None:
        _check("pixels_a_job", quota.pixels_a_job, _pixels(graph, nodes, specs))


def _check(key: str, most: int, counted: Iterable[tuple[Node, str, int | None]]) -> None:
    total = 0
    for node, what, count in counted:
        if count is None:
            message = f"{node.class_type} {node.id}: its {what} cannot be told before the job runs, so that the quota"
            raise _refusal(key, most, f"{message} '{key}' of this tenant ({most:,}) does not allow it; give numbers")
        total += count
        if total > most:
            message = f"with {what} of {node.class_type} {node.id} the job is for {total:,} or more"
            raise _refusal(key, most, f"{message}; the quota '{key}' of this tenant allows {most:,}")


def _refusal(key: str, most: int, message: str) -> InvalidGraphError:
    refused(f"quotas.{key}")
    return InvalidGraphError([Problem("quota_exceeded", message, extra={"quota": key, "limit": most})])


def _steps(graph: Graph, nodes: Iterable[Node]) -> Iterator[tuple[Node, str, int | None]]:
    """Yield what each sampler does: its own steps, else those of all the nodes that its sigmas come from."""
    of_sigmas: dict[str, int | None] = {}
    for node in nodes:
        if STEPS in node.inputs and SIGMAS not in node.inputs:
            own = _number(graph, node.inputs[STEPS])
        else:
            # The links of a node are looked up before it, as the nodes come after what they need.
            given = node.inputs.get(SIGMAS)
            own = of_sigmas.get(given.node_id) if isinstance(given, Link) else None
            # Such a node puts so many more between every two that it is given.
            if STEPS in node.inputs and own is not None:
                more = _number(graph, node.inputs[STEPS])
                own = None if more is None else min(own * (1 + more), MOST)
        of_sigmas[node.id] = own
        if isinstance(node.inputs.get(SAMPLED), Link):
            yield node, STEPS, own


def _pixels(
    graph: Graph, nodes: Iterable[Node], specs: Mapping[str, NodeSpec]
) -> Iterator[tuple[Node, str, int | None]]:
    """Yield what each node makes whose class makes images or latents of a width and a height."""
    for node in nodes:
        if {"LATENT", "IMAGE"}.isdisjoint(specs[node.class_type].outputs) or not node.inputs.keys() >= set(SIDES):
            continue
        names = [name for name in (*SIDES, *REPEATS) if name in node.inputs]
        numbers = [_number(graph, node.inputs[name]) for name in names]
        known = [number for number in numbers if number is not None]
        yield node, " × ".join(names), math.prod(known) if len(known) == len(numbers) else None


def _number(graph: Graph, value: Any) -> int | None:
    """Return a constant, or what a link gives that is one; None if it is not known. Never less than 0."""
    if isinstance(value, Link):
        source = graph.nodes[value.node_id]
        value = source.inputs.get(CONSTANT) if source.class_type in CONSTANTS else None
    return min(max(0, value), MOST) if isinstance(value, int) else None
