"""What the forwards of a job take of a GPU beside weights: counted once for each model and sizes, and cached."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from serve_app import log
from serve_app.errors import NodeError
from serve_app.models.families.family import BackboneFamily, Family
from serve_app.models.forward_cost import forward_cost
from serve_app.models.weights.memory_plan import ACTIVATIONS_MARGIN
from serve_app.models.weights.recipes import WeightFiles
from serve_app.nested_tensor import Samples, parts_of
from serve_app.recipe.context import ContextWindows
from serve_app.recipe.controls import ModelControl
from serve_app.recipe.pack_functions import PackFunctions
from serve_app.recipe.recipe import Recipe
from serve_app.values import Conditioning

KEPT = 1024
"""How many counts are cached."""

BOUND = ("control", "gligen")
"""Options whose values are bound to loaded networks; those add little to a backbone's activations."""

_log = log.get("models")


class Outlines(Protocol):
    """Returns a part's family, and its network without numbers, as `Loader.outline`."""

    def outline(self, recipe: Recipe, files: WeightFiles) -> tuple[Family, nn.Module]: ...


class Activations:
    """Counts activations of models."""

    def __init__(self, outlines: Outlines) -> None:
        self._outlines = outlines
        self._counted: OrderedDict[Hashable, int] = OrderedDict()
        self._of_frames: dict[Hashable, bool] = {}
        """Whether the rows of a model's runs are frames of one video."""

    def nbytes(
        self,
        backbone: Recipe,
        files: WeightFiles,
        latents: Samples,
        conds: Mapping[str, Conditioning],
        factor: int | None = None,
    ) -> int:
        """Return the bytes of the largest forward of one row of a run, or of all where rows depend on each other, with
        what is kept between forwards.

        0 for a run that cannot be counted. latents, factor: as in a SamplingRequest. Errors: ModelFileError.
        """
        outline = partial(self._outlines.outline, backbone, files)
        rows = latents if self.are_together(backbone, files) else latents[:1]
        windows = backbone.last(ContextWindows)
        of_rows = files.key, *(part.shape for part in parts_of(rows)), bool(rows.any()), factor, windows
        largest = 0
        for cond, options in (entry for own in conds.values() for entry in own):
            read = {name: value for name, value in options.items() if name not in BOUND}
            key = *of_rows, cond.shape, _shapes(read)
            if key not in self._counted:
                self._counted[key] = _counted(outline, rows, factor, cond, read, windows)
                if len(self._counted) > KEPT:
                    self._counted.popitem(last=False)
            largest = max(largest, self._counted[key])
        return largest

    def are_together(self, backbone: Recipe, files: WeightFiles) -> bool:
        """Whether all rows of a run go into one forward, as they depend on each other. Errors: ModelFileError."""
        if backbone.last(ModelControl) is not None or backbone.last(PackFunctions) is not None:
            return True
        if files.key not in self._of_frames:
            family, _ = self._outlines.outline(backbone, files)
            self._of_frames[files.key] = isinstance(family, BackboneFamily) and family.rows_are_frames
        return self._of_frames[files.key]


def _counted(
    outline: Callable[[], tuple[Family, nn.Module]],
    latents: Samples,
    factor: int | None,
    cond: Tensor,
    options: Mapping[str, Any],
    windows: ContextWindows | None,
) -> int:
    family, network = outline()
    assert isinstance(family, BackboneFamily)
    try:
        samples = family.latent_format.accept(latents.to("cpu", torch.float32), factor)
        cost = forward_cost(family, network, samples, cond, options, windows)
        kept = max(family.kept_bytes(part) for part in parts_of(samples))
    except (NodeError, RuntimeError) as error:
        # What is wrong with a job is said where it runs.
        _log.info("a forward could not be counted: family=%s error=%s", family.title, repr(error))
        return 0
    return int(ACTIVATIONS_MARGIN * cost.peak_bytes) + kept


def _shapes(value: Any) -> Hashable:
    """Return what a count may depend on of an option: shapes of tensors, and names."""
    match value:
        case Tensor():
            return tuple(value.shape)
        case Mapping():
            return tuple(sorted((name, _shapes(one)) for name, one in value.items()))
        case list() | tuple():
            return tuple(map(_shapes, value))
        case str() | bool() | None:
            return value
    return type(value).__name__
