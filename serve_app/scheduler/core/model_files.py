"""Model files as the scheduler knows them: by name alone, as workflows name them and as replicas say what they hold.

The folder is left out, since a workflow's constant does not say it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from serve_app.graph.graph import Graph, Link, Node
from serve_app.graph.model_files import LOADERS
from serve_app.recipe import Recipe, warm_recipes

SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
"""What the names of files with weights end in."""

_CHANGING = ("UnetLoaderGGUFAdvanced", "CreateHookModelAsLora", "CreateHookModelAsLoraModelOnly")
"""Loaders whose models are not, or need not be, as their files have them."""
BYPASSING = ("LoraLoaderBypass", "LoraLoaderBypassModelOnly")
LORA_LOADERS = ("LoraLoader", "LoraLoaderModelOnly", *BYPASSING)
"""Nodes that put a LoRA on a model, their first output, and some on a text encoder, their second."""
MOST_LORAS = 64
"""How many LoRAs a model may have of which replicas are told ahead: a graph can chain thousands."""
_KINDS = {
    "TripleCLIPLoader": "sd3",
    "TripleCLIPLoaderGGUF": "sd3",
    "QuadrupleCLIPLoader": "hidream",
    "QuadrupleCLIPLoaderGGUF": "hidream",
}
"""What loaders of text encoders load them for that are not told a type."""

_STRENGTH = re.compile(r" -?[0-9][0-9.e+-]*$")


class ModelFiles(NamedTuple):
    """The model files that a job names, each once. all: in its nodes' order. whole: without LoRAs."""

    all: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()


def files_of(graph: Graph, nodes: Iterable[str]) -> ModelFiles:
    """Return the model files that nodes name. What an input with "lora" in its name names is taken to be a LoRA."""
    inputs = (item for node_id in nodes for item in graph.nodes[node_id].inputs.items())
    named = {
        _base(value): "lora" in name.lower()
        for name, value in inputs
        if isinstance(value, str) and value.lower().endswith(SUFFIXES)
    }
    files = tuple(named)
    return ModelFiles(files, tuple(file for file in files if not named[file]) if any(named.values()) else files)


def recipes_of(graph: Graph, nodes: Iterable[str]) -> tuple[Recipe, ...]:
    """Return the models that nodes use and name outright, with their LoRAs, each once.

    A loader that changes what it loads, or is told by a link what that is, is left out, and so is such a LoRA. So is a
    model with more than MOST_LORAS.
    """
    users = (graph.nodes[node_id] for node_id in nodes)
    links = (link for user in users if user.class_type not in LORA_LOADERS for _, link in user.links())
    known: dict[Link, Recipe | None] = {}
    found = (_recipe(graph, link, known) for link in links)
    return tuple(dict.fromkeys(recipe for recipe in found if recipe is not None))


def _recipe(graph: Graph, link: Link, known: dict[Link, Recipe | None]) -> Recipe | None:
    """Return the model that a link leads to, if it is one that is known. known: what links on the way to it give."""
    loras: list[Link] = []
    at: Any = link
    while isinstance(at, Link) and at not in known:
        node = graph.nodes[at.node_id]
        if node.class_type in LORA_LOADERS:
            loras.append(at)
            at = node.inputs.get("model" if at.slot == 0 else "clip")
        else:
            model = _model(node)
            known[at] = None if model is None else dict(enumerate(warm_recipes(model))).get(at.slot)
    recipe = known.get(at) if isinstance(at, Link) else None
    for lora in reversed(loras):
        inputs, bypass = graph.nodes[lora.node_id].inputs, graph.nodes[lora.node_id].class_type in BYPASSING
        if recipe is not None:
            strength = inputs.get("strength_model" if lora.slot == 0 else "strength_clip")
            recipe = _with_lora(recipe, inputs.get("lora_name"), strength, bypass=bypass)
        known[lora] = recipe
    return recipe


def _with_lora(recipe: Recipe, name: Any, strength: Any, *, bypass: bool) -> Recipe | None:
    if not isinstance(name, str) or not isinstance(strength, int | float):
        return recipe
    if len(recipe.patches) == MOST_LORAS:
        return None
    return recipe.with_bypass_lora(name, strength) if bypass else recipe.with_lora(name, strength)


def _model(node: Node) -> str | None:
    """Return the model that a loader loads, as `recipe.WARM_FORM` has it."""
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
