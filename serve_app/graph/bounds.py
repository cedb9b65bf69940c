"""Checks a graph's cost against the server's limits, from its constants, before its job is accepted.

`cost.py` computes the cost; the same limits are checked while the job runs, for what is not known before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from serve_app.config.limits import LatentBounds, SizeLimits
from serve_app.errors import Problem
from serve_app.graph import cost
from serve_app.graph.cost import PIXELS_A_SIDE, STEPS, Extent
from serve_app.graph.graph import Graph, Node
from serve_app.graph.spec import NodeSpec
from serve_app.graph.validate import Validated, with_findings
from serve_app.limits import describe_levels

BYTES_A_PIXEL = 12
"""Of an image as nodes have it: three numbers of single precision."""
RATE = "sample_rate"


def within_bounds(
    validated: Validated, specs: Mapping[str, NodeSpec], sizes: SizeLimits, latents: LatentBounds | None
) -> Validated:
    """Return it without the outputs that need a node over the limits. latents: None is no limit."""
    graph = validated.graph
    nodes = [graph.nodes[node_id] for node_id in graph.ancestors(validated.outputs)]
    extents = cost.extents(graph, nodes)
    problems = [
        *_levels(graph, nodes, specs, sizes),
        *_conditionings(graph, nodes, specs, sizes),
        *_batches(graph, nodes, extents, specs, sizes),
        *_rates(nodes, specs, sizes),
        *([] if latents is None else _latents(graph, nodes, extents, latents)),
    ]
    return with_findings(validated, problems, {}) if problems else validated


def _problem(type_: str, node: Node, message: str, name: str) -> Problem:
    extra: dict[str, Any] = {"input_name": name}
    if isinstance(value := node.inputs.get(name), int | float | str):
        extra["received_value"] = value
    return Problem(type_, message, node_id=node.id, class_type=node.class_type, extra=extra)


def _levels(graph: Graph, nodes: Sequence[Node], specs: Mapping[str, NodeSpec], sizes: SizeLimits) -> Iterator[Problem]:
    counts = cost.levels(graph, nodes)
    for node in nodes:
        # Other nodes use `steps` for other things.
        makes_levels = "SIGMAS" in specs[node.class_type].outputs or cost.SAMPLED in node.inputs
        if STEPS not in node.inputs or not makes_levels or (count := counts[node.id]) is None:
            continue
        if (excess := sizes.excess("levels", count, "levels")) is not None:
            steps, denoise = (cost.constant_number(graph, node.inputs.get(name, 1)) for name in (STEPS, cost.DENOISE))
            name = cost.DENOISE if cost.DENOISE in node.inputs else STEPS
            if cost.SIGMAS in node.inputs:
                message = f"{steps} steps between every two sigmas make a schedule of {excess}"
            else:
                message = f"{describe_levels(int(steps or 0), 1.0 if denoise is None else denoise)} {excess}"
            yield _problem("too_many_levels", node, message, name)


def _conditionings(
    graph: Graph, nodes: Sequence[Node], specs: Mapping[str, NodeSpec], sizes: SizeLimits
) -> Iterator[Problem]:
    for node_id, count in cost.conditionings(graph, nodes, specs).items():
        if (excess := sizes.excess("conditionings", count, "conditionings")) is not None:
            node = graph.nodes[node_id]
            name = next(name for name, _ in node.links())
            yield _problem("too_many_conditionings", node, f"it would make CONDITIONING of {excess}", name)
            return  # its results have as many


def _batches(
    graph: Graph,
    nodes: Sequence[Node],
    extents: Mapping[str, Extent],
    specs: Mapping[str, NodeSpec],
    sizes: SizeLimits,
) -> Iterator[Problem]:
    """Yield problems of too large batches, and of too large images if a limit is configured."""
    for node in nodes:
        if node.class_type not in cost.EXTENTS or (made := extents.get(node.id)) is None:
            continue
        _, names, _ = cost.EXTENTS[node.class_type]
        numbers = _numbers(graph, node, names)
        if (excess := sizes.excess("batch", made.images, "images")) is not None:
            yield _problem("batch_too_large", node, f"with {numbers} it would make {excess}", names[-1])
        elif "IMAGE" in specs[node.class_type].outputs and (
            excess := sizes.excess("value_bytes", made.pixels * BYTES_A_PIXEL, "bytes")
        ):
            yield _problem("images_too_large", node, f"with {numbers} it would make images of {excess}", names[-1])


def _numbers(graph: Graph, node: Node, names: Sequence[str]) -> str:
    """Return a node's numbers of these names for an error message."""
    return ", ".join(f"{name} {cost.constant_number(graph, node.inputs[name])}" for name in names)


def _rates(nodes: Sequence[Node], specs: Mapping[str, NodeSpec], sizes: SizeLimits) -> Iterator[Problem]:
    for node in nodes:
        rate = node.inputs.get(RATE)
        if "AUDIO" not in specs[node.class_type].outputs or not isinstance(rate, int):
            continue
        if (excess := sizes.excess("sample_rate", rate, "Hz")) is not None:
            yield _problem("sample_rate_too_high", node, f"it would make AUDIO of {excess}", RATE)


def _latents(
    graph: Graph, nodes: Sequence[Node], extents: Mapping[str, Extent], most: LatentBounds
) -> Iterator[Problem]:
    """Yield problems of a sampler's latents that are too large for every pool."""
    seen: set[str] = set()
    for sampler, link in cost.samplers(nodes):
        maker = graph.nodes[link.node_id]
        # A sampler's result has the size of its input, which has been checked.
        if maker.id in seen or maker.class_type not in cost.EXTENTS or (made := extents.get(maker.id)) is None:
            continue
        seen.add(maker.id)
        if made.cells > most.cells:
            what, key, allowed = f"{made.cells:,} cells", "latent_cells", f"{most.cells:,}"
        elif made.pairs > most.pairs:
            what, key, allowed = f"{made.pairs:,} pairs of cells", "latent_pairs", f"{most.pairs:,}"
        else:
            continue
        _, names, _ = cost.EXTENTS[maker.class_type]
        numbers = _numbers(graph, maker, names)
        message = (
            f"{numbers} make latents of {what}, which {sampler.class_type} {sampler.id} would sample at once; "
            f"{key} of the pools here allows {allowed}, one cell for {PIXELS_A_SIDE}×{PIXELS_A_SIDE} pixels"
        )
        yield _problem("latents_too_large", maker, message, _to_blame(maker, names, made, most))


def _to_blame(maker: Node, names: Sequence[str], made: Extent, most: LatentBounds) -> str:
    """Return the input that makes latents too large: a side if one image is, else the length, else the batch's."""
    sides = [name for name in names if name in ("width", "height")]
    image = made.cells_of_one if made.frames == 1 else (made.width // PIXELS_A_SIDE) * (made.height // PIXELS_A_SIDE)
    if sides and (image > most.cells or image**2 > most.pairs):
        return "width" if made.width >= made.height else "height"
    one_is_too_large = made.cells_of_one > most.cells or made.cells_of_one**2 > most.pairs
    return "length" if "length" in names and one_is_too_large else names[-1]
