"""The cost of a graph's nodes, computed from its constants: noise levels, latents and images, conditionings.

`bounds.py` checks it against limits, `job_size.py` against a tenant's quotas. A number linked from a node that only
outputs a constant (PrimitiveInt) is known too. Other values (of images, files, computed numbers, classes that are not
listed here) are unknown, and are measured while the job runs (`execution/size.py`, `engine/node_runtime.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from serve_app.graph.graph import Graph, Link, Node
from serve_app.graph.spec import NodeSpec
from serve_app.limits import MOST_COUNTED, levels_of

STEPS, DENOISE, SIGMAS = "steps", "denoise", "sigmas"
SAMPLED = "latent_image"
"""The input whose whole batch a sampler's forwards take."""
CONSTANT, CONSTANTS = "value", frozenset({"PrimitiveInt", "PrimitiveFloat"})
"""Classes that output a constant, and the input that has it."""
FIXED = frozenset({"SDTurboScheduler", "AlignYourStepsScheduler", "OptimalStepsScheduler", "GITSScheduler"})
"""Classes whose schedule is not longer for a lower denoise: they skip its beginning."""
PIXELS_A_SIDE = 8
"""Of one cell."""
FRAMES_A_CELL = 4
"""Of a video, after the first frame, which has cells of its own."""


def constant_number(graph: Graph, value: Any) -> int | float | None:
    """Return a constant number, also through a link; None if it is unknown. Never less than 0."""
    if isinstance(value, Link):
        source = graph.nodes[value.node_id]
        value = source.inputs.get(CONSTANT) if source.class_type in CONSTANTS else None
    return min(max(0, value), MOST_COUNTED) if isinstance(value, int | float) else None


# Levels ---------------------------------------------------------------------------------------------------------------


def levels(graph: Graph, nodes: Iterable[Node]) -> dict[str, int | None]:
    """Return the number of noise levels of the nodes' schedules; None for unknown ones.

    nodes: in topological order. A sampler's number is its own steps over its denoise, else the sum over the sources of
    its sigmas.
    """
    found: dict[str, int | None] = {}
    for node in nodes:
        if STEPS in node.inputs and SIGMAS not in node.inputs:
            found[node.id] = _own_levels(graph, node)
            continue
        given = node.inputs.get(SIGMAS)
        before = found.get(given.node_id) if isinstance(given, Link) else None
        # The node inserts that many levels between every two of its input.
        if STEPS in node.inputs and before is not None:
            more = constant_number(graph, node.inputs[STEPS])
            before = None if more is None else min(before * (1 + int(more)), MOST_COUNTED)
        found[node.id] = before
    return found


def _own_levels(graph: Graph, node: Node) -> int | None:
    steps = constant_number(graph, node.inputs[STEPS])
    denoise = 1.0 if node.class_type in FIXED else constant_number(graph, node.inputs.get(DENOISE, 1.0))
    return None if steps is None or denoise is None else levels_of(int(steps), denoise)


# Latents and images ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Extent:
    """The size of a batch of images or latents: sides in pixels, frames of a video, and their number.

    Sides scaled by a fraction are rounded down.
    """

    width: int
    height: int
    frames: int = 1
    batch: int = 1

    @property
    def images(self) -> int:
        """Images and frames of all."""
        return self.frames * self.batch

    @property
    def pixels(self) -> int:
        """Pixels of all."""
        return self.width * self.height * self.images

    @property
    def cells_of_one(self) -> int:
        """Latent cells of one image, or of one video."""
        moments = (self.frames - 1) // FRAMES_A_CELL + 1
        return (self.width // PIXELS_A_SIDE) * (self.height // PIXELS_A_SIDE) * moments

    @property
    def cells(self) -> int:
        """Latent cells of all."""
        return self.cells_of_one * self.batch

    @property
    def pairs(self) -> int:
        """Pairs of cells that attend to each other."""
        return self.cells_of_one**2 * self.batch


Inputs: TypeAlias = Mapping[str, int | float]
Rule: TypeAlias = Callable[[Extent | None, Inputs], Extent | None]
"""From the size of a node's input and its numbers to the size of its output; None if unknown."""


def _made(_: Extent | None, given: Inputs) -> Extent:
    whole = {name: int(value) for name, value in given.items()}
    return Extent(whole["width"], whole["height"], max(1, whole.get("length", 1)), whole["batch_size"])


def _repeated(source: Extent | None, given: Inputs) -> Extent | None:
    return None if source is None else replace(source, batch=source.batch * int(given["amount"]))


def _scaled(source: Extent | None, given: Inputs) -> Extent | None:
    if source is None:
        return None
    width, height = (int(side * given["scale_by"]) for side in (source.width, source.height))
    return replace(source, width=width, height=height)


def _resized(source: Extent | None, given: Inputs) -> Extent | None:
    """A side of 0 keeps the other's proportion."""
    if source is None or not (source.width and source.height):
        return None
    width, height = int(given["width"]), int(given["height"])
    width, height = width or source.width * height // source.height, height or source.height * width // source.width
    return replace(source, width=width or source.width, height=height or source.height)


_SIDES = ("width", "height")
EXTENTS: Mapping[str, tuple[str | None, tuple[str, ...], Rule]] = {
    "EmptyLatentImage": (None, (*_SIDES, "batch_size"), _made),
    "EmptySD3LatentImage": (None, (*_SIDES, "batch_size"), _made),
    "EmptyHunyuanLatentVideo": (None, (*_SIDES, "length", "batch_size"), _made),
    "EmptyImage": (None, (*_SIDES, "batch_size"), _made),
    "RepeatImageBatch": ("image", ("amount",), _repeated),
    "RepeatLatentBatch": ("samples", ("amount",), _repeated),
    "ImageScaleBy": ("image", ("scale_by",), _scaled),
    "LatentUpscaleBy": ("samples", ("scale_by",), _scaled),
    "ImageScale": ("image", _SIDES, _resized),
    "LatentUpscale": ("samples", _SIDES, _resized),
}
"""Classes that make images or latents of a size given by numbers: their image input, the numbers, the rule."""


def extents(graph: Graph, nodes: Iterable[Node]) -> dict[str, Extent]:
    """Return the known sizes of the nodes' images or latents. nodes: as `levels`."""
    found: dict[str, Extent] = {}
    for node in nodes:
        if (made := _extent(graph, node, found)) is not None:
            found[node.id] = made
    return found


def _extent(graph: Graph, node: Node, found: Mapping[str, Extent]) -> Extent | None:
    if isinstance(sampled := node.inputs.get(SAMPLED), Link):
        return found.get(sampled.node_id)
    if node.class_type not in EXTENTS:
        return None
    source, names, rule = EXTENTS[node.class_type]
    link = None if source is None else node.inputs.get(source)
    given = {name: value for name in names if (value := constant_number(graph, node.inputs.get(name))) is not None}
    if len(given) < len(names):
        return None
    made = rule(found.get(link.node_id) if isinstance(link, Link) else None, given)
    return None if made is None else Extent(*(min(size, MOST_COUNTED) for size in _sizes(made)))


def _sizes(extent: Extent) -> Sequence[int]:
    return extent.width, extent.height, extent.frames, extent.batch


# Conditionings --------------------------------------------------------------------------------------------------------

CONDITIONING = "CONDITIONING"
COMBINING = frozenset(
    {"ConditioningCombine", "ConditioningSetPropertiesAndCombine", "ConditioningSetDefaultCombine"}
    | {"PairConditioningCombine", "PairConditioningSetPropertiesAndCombine", "PairConditioningSetDefaultCombine"}
)
"""Classes that join the entries of several conditionings; all others keep the number."""


def conditionings(graph: Graph, nodes: Iterable[Node], specs: Mapping[str, NodeSpec]) -> dict[str, int]:
    """Return a lower bound on the entries of each node's largest CONDITIONING. nodes: as `levels`."""
    found: dict[tuple[str, int], int] = {}
    most: dict[str, int] = {}
    for node in nodes:
        spec = specs[node.class_type]
        slots = [slot for slot, type_ in enumerate(spec.outputs) if type_ == CONDITIONING]
        for slot in slots:
            # A pair's positives and negatives are counted separately, by the names of inputs and outputs.
            name = spec.output_names[slot] if len(slots) > 1 else ""
            given = [found.get((link.node_id, link.slot), 0) for input, link in node.links() if input.startswith(name)]
            count = sum(given) if node.class_type in COMBINING else max(given, default=0)
            found[node.id, slot] = min(max(1, count), MOST_COUNTED)
        if slots:
            most[node.id] = max(found[node.id, slot] for slot in slots)
    return most


def samplers(nodes: Iterable[Node]) -> Iterator[tuple[Node, Link]]:
    """Yield the nodes that sample latents, each with the link to its latents."""
    for node in nodes:
        if isinstance(sampled := node.inputs.get(SAMPLED), Link):
            yield node, sampled
