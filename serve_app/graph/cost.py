"""What the nodes of a graph cost, as its constants say: levels of noise, latents and images, conditionings.

The one place where that is counted before a job runs: `bounds.py` refuses what is too much, `job_size.py` charges it to
a tenant. A number that comes by a link from a node which only gives out its constant (PrimitiveInt) is known too. What
comes by other ways (images, files, computed numbers, classes that are not named here) is not known, and is measured as
the job runs (`execution/size.py`, `engine/node_runtime.py`).
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
"""The input that nodes of these classes give out as it is."""
FIXED = frozenset({"SDTurboScheduler", "AlignYourStepsScheduler", "OptimalStepsScheduler", "GITSScheduler"})
"""Classes whose schedule is no longer for a lower denoise: they leave its beginning out."""
PIXELS_A_SIDE = 8
"""Of one cell."""
FRAMES_A_CELL = 4
"""Of a video, after the first frame, which has cells of its own."""


def constant_number(graph: Graph, value: Any) -> int | float | None:
    """Return a constant, or what a link gives that is one; None if it is not known. Never less than 0."""
    if isinstance(value, Link):
        source = graph.nodes[value.node_id]
        value = source.inputs.get(CONSTANT) if source.class_type in CONSTANTS else None
    return min(max(0, value), MOST_COUNTED) if isinstance(value, int | float) else None


# Levels ---------------------------------------------------------------------------------------------------------------


def levels(graph: Graph, nodes: Iterable[Node]) -> dict[str, int | None]:
    """Return how many levels the schedules have that nodes make or run over; None of those that are not known.

    nodes: each after what it needs. A sampler's are its own steps over its denoise, else those of all nodes that its
    sigmas come from.
    """
    found: dict[str, int | None] = {}
    for node in nodes:
        if STEPS in node.inputs and SIGMAS not in node.inputs:
            found[node.id] = _own_levels(graph, node)
            continue
        given = node.inputs.get(SIGMAS)
        before = found.get(given.node_id) if isinstance(given, Link) else None
        # Such a node inserts that many levels between every two that it is given.
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
    """How large images or latents are: of each its sides in pixels, its frames where it is a video; how many there are.

    Of a factor that is no whole number, sides are rounded down.
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
"""(what the node is given, its numbers) to what it makes; None where that is not known."""


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
"""Classes that make images or latents of a size that their numbers say: the input they take, the numbers, the rule."""


def extents(graph: Graph, nodes: Iterable[Node]) -> dict[str, Extent]:
    """Return how large the images or latents are that nodes make, of those where it is known. nodes: as `levels`."""
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
"""Classes that put the entries of several conditionings into one; all others have as many as they are given."""


def conditionings(graph: Graph, nodes: Iterable[Node], specs: Mapping[str, NodeSpec]) -> dict[str, int]:
    """Return how many entries the largest CONDITIONING that a node makes has, at least. nodes: as `levels`."""
    found: dict[tuple[str, int], int] = {}
    most: dict[str, int] = {}
    for node in nodes:
        spec = specs[node.class_type]
        slots = [slot for slot, type_ in enumerate(spec.outputs) if type_ == CONDITIONING]
        for slot in slots:
            # A pair's positives are apart from its negatives, by what inputs and outputs are called.
            name = spec.output_names[slot] if len(slots) > 1 else ""
            given = [found.get((link.node_id, link.slot), 0) for input, link in node.links() if input.startswith(name)]
            count = sum(given) if node.class_type in COMBINING else max(given, default=0)
            found[node.id, slot] = min(max(1, count), MOST_COUNTED)
        if slots:
            most[node.id] = max(found[node.id, slot] for slot in slots)
    return most


def samplers(nodes: Iterable[Node]) -> Iterator[tuple[Node, Link]]:
    """Yield the nodes that sample latents, each with the link that these come by."""
    for node in nodes:
        if isinstance(sampled := node.inputs.get(SAMPLED), Link):
            yield node, sampled
