"""Model files as the scheduler knows them: by name alone, as workflows name them and as replicas say what they hold.

The folder is left out, since a workflow's constant does not say it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from serve_app.graph.graph import Graph, Node
from serve_app.graph.model_files import LOADERS

SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
"""What the names of files with weights end in."""

_CHANGING = ("UnetLoaderGGUFAdvanced", "CreateHookModelAsLora", "CreateHookModelAsLoraModelOnly")
"""Loaders whose models are not, or need not be, as their files have them."""
_KINDS = {
    "TripleCLIPLoader": "sd3",
    "TripleCLIPLoaderGGUF": "sd3",
    "QuadrupleCLIPLoader": "hidream",
    "QuadrupleCLIPLoaderGGUF": "hidream",
}
"""What loaders of text encoders load them for that are not told a type."""

_STRENGTH = re.compile(r" -?[0-9][0-9.e+-]*$")


def files_of(graph: Graph, nodes: Iterable[str]) -> tuple[str, ...]:
    """Return the model files that nodes name, each once, in the nodes' order."""
    values = (value for node_id in nodes for value in graph.nodes[node_id].inputs.values())
    names = (value for value in values if isinstance(value, str) and value.lower().endswith(SUFFIXES))
    return tuple(dict.fromkeys(map(_base, names)))


def models_of(graph: Graph, nodes: Iterable[str]) -> tuple[str, ...]:
    """Return the models that nodes load and name outright, each once, as `recipe.WARM_FORM` has them.

    A loader that changes what it loads, or is told by a link what that is, is left out.
    """
    found = (_model(graph.nodes[node_id]) for node_id in nodes)
    return tuple(dict.fromkeys(model for model in found if model is not None))


def _model(node: Node) -> str | None:
    inputs = LOADERS.get(node.class_type)
    if inputs is None or node.class_type in _CHANGING or node.inputs.get("weight_dtype", "default") != "default":
        return None
    asked = {name: node.inputs[name] for name in inputs if name in node.inputs}
    if not asked or not all(isinstance(value, str) for value in asked.values()):
        return None
    [folder] = {inputs[name][1] for name in asked}
    kind = _KINDS.get(node.class_type) or (node.inputs.get("type") if _is_of_texts(inputs) else None)
    return f"{folder}/{' + '.join(asked.values())}" + (f" as {kind}" if isinstance(kind, str) else "")


def _is_of_texts(inputs: Mapping[str, tuple[str, str]]) -> bool:
    return any(part == "clip" for part, _ in inputs.values())


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
