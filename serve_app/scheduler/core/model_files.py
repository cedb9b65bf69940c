"""The model files of jobs and replicas, by file name.

Folders are left out, since a constant in a workflow does not name its folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from serve_app.graph.graph import Graph, Link, Node
from serve_app.graph.model_files import LOADERS
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.warm import warm_recipes

SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
"""The suffixes of weight files."""

_CHANGING = ("UnetLoaderGGUFAdvanced", "CreateHookModelAsLora", "CreateHookModelAsLoraModelOnly")
"""Loaders that may change the model that they load."""
BYPASSING = ("LoraLoaderBypass", "LoraLoaderBypassModelOnly")
LORA_LOADERS = ("LoraLoader", "LoraLoaderModelOnly", *BYPASSING)
"""Nodes that put a LoRA on a model, their first output, and some on a text encoder, their second."""
MOST_LORAS = 64
"""The most LoRAs of a model that is prefetched: a graph can chain thousands."""
_KINDS = {
    "TripleCLIPLoader": "sd3",
    "TripleCLIPLoaderGGUF": "sd3",
    "QuadrupleCLIPLoader": "hidream",
    "QuadrupleCLIPLoaderGGUF": "hidream",
}
"""The type of text encoder that loaders without a `type` input load."""

_STRENGTH = re.compile(r" -?[0-9][0-9.e+-]*$")


class JobModelFiles(NamedTuple):
    """The distinct model files that a job names. all: in its nodes' order. whole: without LoRAs."""

    all: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()


def files_of(graph: Graph, nodes: Iterable[str]) -> JobModelFiles:
    """Return the model files that nodes name. An input with "lora" in its name is taken to name a LoRA."""
    inputs = (item for node_id in nodes for item in graph.nodes[node_id].inputs.items())
    named = {
        _base(value): "lora" in name.lower()
        for name, value in inputs
        if isinstance(value, str) and value.lower().endswith(SUFFIXES)
    }
    files = tuple(named)
    return JobModelFiles(files, tuple(file for file in files if not named[file]) if any(named.values()) else files)


def recipes_of(graph: Graph, nodes: Iterable[str]) -> tuple[Recipe, ...]:
    """Return the distinct models that nodes use and name by constants, with their LoRAs.

    Left out: loaders and LoRAs whose file comes by a link, loaders that change their model, and models with more than
    MOST_LORAS.
    """
    users = (graph.nodes[node_id] for node_id in nodes)
    links = (link for user in users if user.class_type not in LORA_LOADERS for _, link in user.links())
    known: dict[Link, Recipe | None] = {}
    found = (_recipe(graph, link, known) for link in links)
    return tuple(dict.fromkeys(recipe for recipe in found if recipe is not None))


def _recipe(graph: Graph, link: Link, known: dict[Link, Recipe | None]) -> Recipe | None:
    """Return the model at the end of a link, if constants name it. known: a cache by link."""
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
    """Yield the weight files of a loaded recipe.

    recipe: one of `Resident.recipes`, e.g. "backbone checkpoints/a.safetensors + b.safetensors 0.8"; what follows the
    first file is a further one, or a LoRA with its strength.
    """
    return (_STRENGTH.sub("", _base(part)) for part in recipe.split(" + "))


def load_times(loads: Iterable[tuple[str, float]]) -> Mapping[str, float]:
    """Return the loading time of each file in seconds: for a file of several parts the sum, shared among files.

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
