"""Empty latents too large for any sampler here, known from a graph's constants before its job is accepted.

What a sampler is given by other ways (from images, files, or numbers that come by a link) is measured as it runs.
"""

from __future__ import annotations

from collections.abc import Iterator

from serve_app.errors import Problem
from serve_app.graph.graph import Graph
from serve_app.graph.validate import Validated, with_findings

EMPTY = frozenset(("EmptyLatentImage", "EmptySD3LatentImage"))
SIDES, BATCH = ("width", "height"), "batch_size"
SAMPLED = "latent_image"
"""The input whose whole batch a sampler's forwards take."""
PIXELS_A_SIDE = 8
"""Of one cell."""


def within_cells(validated: Validated, most: int) -> Validated:
    """Return it without the outputs that need a sampler whose empty latents have more cells than it may work on."""
    problems = list(_too_large(validated.graph, most))
    return with_findings(validated, problems, {}) if problems else validated


def _too_large(graph: Graph, most: int) -> Iterator[Problem]:
    samplers: dict[str, str] = {}
    for node in graph.nodes.values():
        for name, link in node.links():
            if name == SAMPLED:
                samplers.setdefault(link.node_id, f"{node.class_type} {node.id}")
    for node_id, sampler in samplers.items():
        empty = graph.nodes.get(node_id)
        if empty is None or empty.class_type not in EMPTY:
            continue
        given = {name: value for name in (*SIDES, BATCH) if isinstance(value := empty.inputs.get(name), int)}
        if len(given) < len(SIDES) + 1:
            continue
        width, height = (given[side] // PIXELS_A_SIDE for side in SIDES)
        cells = width * height * given[BATCH]
        if cells <= most:
            continue
        name = BATCH if width * height <= most else max(SIDES, key=given.__getitem__)
        numbers = ", ".join(f"{key} {value}" for key, value in given.items())
        message = (
            f"{numbers} make latents of {cells:,} cells, which {sampler} would sample at once; "
            f"latent_cells of the pools here allows {most:,}, one for {PIXELS_A_SIDE}×{PIXELS_A_SIDE} pixels"
        )
        extra = {"input_name": name, "received_value": given[name]}
        yield Problem("latents_too_large", message, node_id=node_id, class_type=empty.class_type, extra=extra)
