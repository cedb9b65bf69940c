"""Resolves a recipe to its files, and to the key that identifies the weights.

Recipes that differ in clip skip, training, guidance, FreeU or placement of references have equal weights; those that
differ in LoRAs share a part's weights and have a LoRA set each. A merge with other models has weights of its own, which
contain all changes up to the last merge.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from serve_app.recipe.controls import DiffControlNetBase
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.text import ProjectedBy
from serve_app.recipe.weights import (
    DEFAULT_DTYPE,
    ComputedIn,
    Lora,
    Merge,
    Rounded,
    Scale,
    Sharded,
    Streams,
    Towards,
    WeightChange,
)
from serve_app.store.models.catalog import Catalog


class WeightFiles(NamedTuple):
    """Files of weights, and a key that is equal for equal weights. A replaced file makes another key.

    changes: to the weights, in order.
    """

    paths: tuple[Path, ...]
    key: Hashable
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """A change of weights, and the files of its LoRA or other model."""

    patch: WeightChange
    files: WeightFiles

    @property
    def key(self) -> Hashable:
        """Equal for equal changes."""
        match self.patch:
            case Lora(strength=strength, bypass=bypass):
                return self.files.key, strength, bypass
            case Towards(strength=strength):
                return self.files.key, strength
            case Merge(shares=shares):
                return self.files.key, shares
        return self.patch


@dataclass(frozen=True, slots=True)
class Need:
    """Weights needed at once: bytes by key, and their recipes. activation_bytes: of the largest forward with them."""

    nbytes: Mapping[Hashable, int]
    recipes: tuple[Recipe, ...] = ()
    activation_bytes: int = 0


def merged_in(recipe: Recipe) -> tuple[WeightChange, ...]:
    """Return the changes contained in the weights of a recipe's part themselves: all up to its last merge."""
    changes = _of_weights(recipe)
    last = max((i for i, change in enumerate(changes) if isinstance(change, Merge)), default=-1)
    return changes[: last + 1]


def unmerged(recipe: Recipe) -> tuple[Lora | Towards | Scale, ...]:
    """Return the changes on top of the weights of a recipe's part: those after its last merge, bypass LoRAs last."""
    bypassing = (lora for lora in recipe.all(Lora) if lora.bypass)
    return (*_of_weights(recipe)[len(merged_in(recipe)) :], *bypassing)


def _of_weights(recipe: Recipe) -> tuple[Any, ...]:
    """Return the changes of a recipe's weights, in order, without bypass LoRAs."""
    return tuple(change for change in recipe.all(WeightChange) if not (isinstance(change, Lora) and change.bypass))


def of_weights(recipe: Recipe) -> Recipe:
    """Return a backbone's recipe with those patches alone of which its weights are made: plain values, to be sent."""
    return replace(
        recipe,
        patches=tuple(map(_of_weights_alone, recipe.all(WeightChange | Rounded | ComputedIn | Streams | Sharded))),
    )


def _of_weights_alone(patch: Any) -> Any:
    return replace(patch, other=of_weights(patch.other)) if isinstance(patch, Merge | Towards) else patch


def part_files(catalog: Catalog, recipe: Recipe, *, whole: bool = False) -> WeightFiles:
    """Return the files of a recipe's part; for a diff ControlNet, its base's last.

    whole: with all changes of its weights, not only the merged ones. Errors: ModelFileError for a missing file.
    """
    names = (recipe.name, *recipe.extra_files)
    paths = [path for name in names for path in catalog.paths(recipe.folder, name, recipe.part)]
    if (changed := recipe.last(DiffControlNetBase)) is not None:
        paths += part_files(catalog, changed.backbone).paths
    if (projection := recipe.last(ProjectedBy)) is not None:
        paths += catalog.paths("checkpoints", projection.name, recipe.part)
    rounded, computed = recipe.last(Rounded), recipe.last(ComputedIn)
    dtypes = (rounded and rounded.to, computed.dtype if computed is not None else DEFAULT_DTYPE)
    places = recipe.last(Streams), recipe.last(Sharded)
    changes = _changes(catalog, _of_weights(recipe) if whole else merged_in(recipe))
    of_changes = (change.key for change in changes)
    key = (recipe.part, recipe.loaded_as, *dtypes, *places, *map(version, paths), *of_changes)
    return WeightFiles(tuple(paths), key, changes)


def set_files(catalog: Catalog, part: Hashable, changes: Sequence[Lora | Towards | Scale]) -> WeightFiles:
    """Return the files of a LoRA set on a part. Errors: ModelFileError for a missing one."""
    found = _changes(catalog, changes)
    paths = tuple(path for change in found for path in change.files.paths)
    return WeightFiles(paths, (part, tuple(change.key for change in found)), found)


def _changes(catalog: Catalog, patches: Sequence[WeightChange]) -> tuple[Change, ...]:
    return tuple(Change(patch, _files(catalog, patch)) for patch in patches)


def _files(catalog: Catalog, patch: WeightChange) -> WeightFiles:
    match patch:
        case Lora(name=name):
            path = catalog.path("loras", name)
            return WeightFiles((path,), version(path))
        case Merge(other=other) | Towards(other=other):
            return part_files(catalog, other, whole=True)
    return WeightFiles((), None)


def version(path: Path) -> Hashable:
    """Return a value that changes when a file is replaced under its name."""
    stat = path.stat()
    return str(path), stat.st_mtime_ns, stat.st_size
