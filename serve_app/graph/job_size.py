"""Checks a tenant's quotas per job, of steps and pixels, from the graph before the job is accepted.

`cost.py` counts them. A graph with an unknown number is refused if there is a quota of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from serve_app.config.quotas import Quota
from serve_app.errors import InvalidGraphError, Problem
from serve_app.graph import cost
from serve_app.graph.graph import Graph, Node
from serve_app.graph.spec import NodeSpec
from serve_app.limits import MOST_COUNTED, refused

SIDES = ("width", "height")
REPEATS = ("batch_size", "length", "layers")
"""Inputs with the number of images: of a batch, frames of a video, layers of an image."""


def within_quota(graph: Graph, outputs: Iterable[str], specs: Mapping[str, NodeSpec], quota: Quota) -> None:
    """Check a validated graph against a tenant's quotas of one job. Errors: InvalidGraphError."""
    if quota.steps_a_job is None and quota.pixels_a_job is None:
        return
    nodes = [graph.nodes[node_id] for node_id in graph.ancestors(outputs)]
    if quota.steps_a_job is not None:
        _check("steps_a_job", quota.steps_a_job, _levels(graph, nodes))
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


def _levels(graph: Graph, nodes: Sequence[Node]) -> Iterator[tuple[Node, str, int | None]]:
    """Yield the levels of each sampler's schedule: of a run of denoise 0.5, twice its steps."""
    levels = cost.levels(graph, nodes)
    for node, _ in cost.samplers(nodes):
        yield node, cost.STEPS, levels[node.id]


def _pixels(
    graph: Graph, nodes: Sequence[Node], specs: Mapping[str, NodeSpec]
) -> Iterator[tuple[Node, str, int | None]]:
    """Yield the pixels of each node that makes images or latents from a width and a height, or repeats them."""
    extents = cost.extents(graph, nodes)
    for node in nodes:
        if {"LATENT", "IMAGE"}.isdisjoint(specs[node.class_type].outputs):
            continue
        if node.inputs.keys() >= set(SIDES):
            sides = [name for name in (*SIDES, *REPEATS) if name in node.inputs]
            numbers = [cost.constant_number(graph, node.inputs[name]) for name in sides]
            known = [int(number) for number in numbers if number is not None]
            yield node, " × ".join(sides), math.prod(known) if len(known) == len(numbers) else None
        elif node.class_type in cost.EXTENTS and node.id in extents:
            _, names, _ = cost.EXTENTS[node.class_type]
            yield node, " × ".join(names), min(extents[node.id].pixels, MOST_COUNTED)
