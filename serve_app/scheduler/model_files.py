"""Model files as the scheduler knows them: by name alone, as workflows name them and as replicas say what they hold.

The folder is left out, since a workflow's constant does not say it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from serve_app.graph.graph import Graph

SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
"""What the names of files with weights end in."""

_STRENGTH = re.compile(r" -?[0-9][0-9.e+-]*$")


def files_of(graph: Graph, nodes: Iterable[str]) -> tuple[str, ...]:
    """Return the model files that nodes name, each once, in the nodes' order."""
    values = (value for node_id in nodes for value in graph.nodes[node_id].inputs.values())
    names = (value for value in values if isinstance(value, str) and value.lower().endswith(SUFFIXES))
    return tuple(dict.fromkeys(map(_base, names)))


def files_in(recipe: str) -> Iterator[str]:
    """Yield the files of weights that a replica holds.

    recipe: one of `Resident.recipes`, e.g. "backbone checkpoints/a.safetensors + b.safetensors 0.8"; what follows the
    first file is a further one, or a LoRA with its strength.
    """
    return (_STRENGTH.sub("", _base(part)) for part in recipe.split(" + "))


def load_times(loads: Iterable[tuple[str, float]]) -> Mapping[str, float]:
    """Return how long each file took, of what was loaded together: a file of several parts took the sum of theirs.

    loads: recipes as `files_in` takes them, with seconds. What LoRAs made of a part did not read the part's file.
    """
    times: dict[str, float] = {}
    for recipe, seconds in loads:
        parts = recipe.split(" + ")
        loras = [part for part in parts[1:] if _STRENGTH.search(part)]
        files = [file for part in loras or parts for file in files_in(part)]
        for file in files:
            times[file] = times.get(file, 0.0) + seconds / len(files)
    return times


def _base(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]
