"""The built-in node classes: those that the modules of the rooms beside this one declare (`declare.node`)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from serve_app import nodes
from serve_app.execution.protocol import spec_of
from serve_app.graph.spec import NodeSpec

_ORDER = """
loaders.models loaders.gguf loaders.kjnodes loaders.lora conditioning.encode conditioning.region conditioning.properties
conditioning.hooks conditioning.sdxl conditioning.text_encoders conditioning.qwen conditioning.qwen21 conditioning.edit
conditioning.flux video.wan video.wan_control conditioning.files conditioning.controlnet
conditioning.gligen model.training sampling.ksampler sampling.custom sampling.samplers sampling.schedules
sampling.sigmas sampling.guiders model.patches model.controls model.attention_scale model.merging model.saving
model.guidance_patches model.layer_patches latent.latents latent.empty latent.batch latent.transform latent.math
latent.inpaint mask.masks image.compositing image.alpha mask.morphology image.images image.scale image.batch
image.transform image.filters image.edges image.animation latent.tiled logic.primitives text.strings text.format
text.generate logic.switches logic.loops logic.numbers image.resize_and_batch image.files image.regions mask.crop
image.color_transfer image.bounding_boxes layers.layers image.curves text.camera model.devices audio.sounds audio.files
video.videos video.frames conditioning.vision dataset.folders dataset.images dataset.lists dataset.saving
"""
"""The order in which /object_info has the classes of modules; those of others follow, by their modules' names.

Nothing depends on it but that the answer stays byte for byte as clients keep it.
"""


def modules(package: ModuleType) -> list[ModuleType]:
    """Return the modules of the rooms of a package, imported, in the order in which /object_info has their classes."""
    places = {name: place for place, name in enumerate(_ORDER.split())}
    rooms = [room.name for room in iter_modules(package.__path__) if room.ispkg]
    found = [f"{room}.{module.name}" for room in rooms for module in iter_modules([f"{package.__path__[0]}/{room}"])]
    found.sort(key=lambda name: (places.get(name, len(places)), name))
    return [import_module(f"{package.__name__}.{name}") for name in found]


_MODULES = modules(nodes)


def _table(name: str) -> dict[str, Any]:
    return {key: value for module in _MODULES for key, value in getattr(module, name, {}).items()}


BUILTIN: Mapping[str, type] = _table("NODE_CLASS_MAPPINGS")
"""The node classes there are, by the name workflows use."""

DISPLAY_NAMES: Mapping[str, str] = _table("NODE_DISPLAY_NAME_MAPPINGS")
"""ComfyUI's titles; a class without one shows its class name, as there."""


def specs() -> dict[str, NodeSpec]:
    """Return every built-in class as data."""
    return dict(_specs())


@cache
def _specs() -> Mapping[str, NodeSpec]:
    return {name: spec_of(node_class, name, DISPLAY_NAMES.get(name, "")) for name, node_class in BUILTIN.items()}
