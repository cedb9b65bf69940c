"""What a recipe stands for: its files, and the identity of the weights they make.

Recipes that differ in where a text encoder stops, in training, guidance, FreeU or how references are placed have equal
weights; those that differ in LoRAs share a part's weights, and have a set of LoRAs each beside them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from serve_app.store.catalog import Catalog
from serve_app.values import Difference, Lora, Recipe, Rounded


class Files(NamedTuple):
    """Files of weights, and a key that is equal for equal ones. A file that is replaced under its name is another."""

    paths: tuple[Path, ...]
    key: Hashable


@dataclass(frozen=True, slots=True)
class Need:
    """The weights that a piece of work needs at once: how many bytes they take, by key."""

    nbytes: Mapping[Hashable, int]


def part_files(catalog: Catalog, recipe: Recipe) -> Files:
    """Return the files of a recipe's part, those of a backbone whose weights it changes last.

    Errors: ModelFileError for one that is not there.
    """
    names = (recipe.name, *recipe.beside)
    paths = [path for name in names for path in catalog.paths(recipe.folder, name, recipe.part)]
    if (changed := recipe.last(Difference)) is not None:
        paths += part_files(catalog, changed.backbone).paths
    rounded = recipe.last(Rounded)
    return Files(tuple(paths), (recipe.part, recipe.loaded_as, rounded and rounded.to, *map(version, paths)))


def lora_files(catalog: Catalog, part: Hashable, loras: Sequence[Lora]) -> Files:
    """Return the files of a set of LoRAs on a part. Errors: ModelFileError for one that is not there."""
    paths = tuple(catalog.path("loras", lora.name) for lora in loras)
    of_set = tuple((version(path), lora.strength) for path, lora in zip(paths, loras, strict=True))
    return Files(paths, (part, of_set))


def version(path: Path) -> Hashable:
    """Return what changes when a file is replaced under its name."""
    stat = path.stat()
    return str(path), stat.st_mtime_ns, stat.st_size
