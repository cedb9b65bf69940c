"""Empty latents too large for any sampler here, known from a graph's constants before its job is accepted.

What a sampler is given by other ways (from images, files, or numbers that come by a link) is measured as it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from serve_app.errors import Problem
from serve_app.graph.graph import Graph
from serve_app.graph.validate import Validated, with_findings

EMPTY: Mapping[str, tuple[str, ...]] = {
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "EmptySD3LatentImage": ("width", "height", "batch_size"),
    "EmptyHunyuanLatentVideo": ("width", "height", "length", "batch_size"),
}
"""Classes that make empty latents, and the inputs that say how large."""
SIDES, LENGTH, BATCH = ("width", "height"), "length", "batch_size"
SAMPLED = "latent_image"
"""The input whose whole batch a sampler's forwards take."""
PIXELS_A_SIDE = 8
"""Of one cell."""
FRAMES_A_CELL = 4
"""Of a video, after the first frame, which has cells of its own."""


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
        names = EMPTY[empty.class_type]
        given = {name: value for name in names if isinstance(value := empty.inputs.get(name), int)}
        if len(given) < len(names):
            continue
        width, height = (given[side] // PIXELS_A_SIDE for side in SIDES)
        in_time = (given.get(LENGTH, 1) - 1) // FRAMES_A_CELL + 1
        cells = width * height * in_time * given[BATCH]
        if cells <= most:
            continue
        if width * height > most:
            name = max(SIDES, key=given.__getitem__)
        else:
            name = LENGTH if width * height * in_time > most else BATCH
        numbers = ", ".join(f"{key} {value}" for key, value in given.items())
        message = (
            f"{numbers} make latents of {cells:,} cells, which {sampler} would sample at once; "
            f"latent_cells of the pools here allows {most:,}, one for {PIXELS_A_SIDE}×{PIXELS_A_SIDE} pixels"
        )
        extra = {"input_name": name, "received_value": given[name]}
        yield Problem("latents_too_large", message, node_id=node_id, class_type=empty.class_type, extra=extra)
