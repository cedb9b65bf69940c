"""Conversion of values on links for packs and back: recipes to objects, conditionings to mutable lists.

`shown` converts a pack node's inputs, and `plain` its results; the same for the server's own nodes called by a pack.
Mutable values are copied each time, so a pack's changes in place are private to it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from serve_app.packs.comfy.clip_vision import ClipVisionModel, Output
from serve_app.packs.comfy.controlnet import ControlNet
from serve_app.packs.comfy.model_patcher import ModelPatcher
from serve_app.packs.comfy.samplers import KSAMPLER, CFGGuider, DrawnNoise, Sampler, is_noise, noise_of
from serve_app.packs.comfy.sd import CLIP, VAE
from serve_app.recipe.recipe import Recipe
from serve_app.values import ClipVisionOutput, Control, Guider, Noise, SamplerChoice


def shown(value: Any) -> Any:
    """Convert a value for packs; lists, tuples and dicts are copied if something in them changes."""
    match value:
        case Recipe(part="backbone"):
            return ModelPatcher.of(value)
        case Recipe(part="clip"):
            return CLIP(value)
        case Recipe(part="vae"):
            return VAE(value)
        case Recipe(part="controlnet"):
            return ControlNet(value)
        case Recipe(part="clip_vision"):
            return ClipVisionModel(value)
        case ClipVisionOutput():
            return Output.of(value)
        case Control():
            return ControlNet.of(value)
        case SamplerChoice():
            return KSAMPLER.of(value)
        case Guider():
            return CFGGuider.of(value, shown)
        case Noise():
            return DrawnNoise(value)
    if _is_conditioning(value):
        return [[cond, {name: shown(option) for name, option in options.items()}] for cond, options in value]
    return _within(value, shown)


def plain(value: Any) -> Any:
    """Convert a pack's value for a link. Errors: those of the objects, for values that no link can have."""
    match value:
        case ModelPatcher(recipe=Recipe()) | Sampler() | ControlNet() | Output():
            return value.plain()
        case CFGGuider():
            return value.plain(plain)
        case CLIP() | VAE() | ClipVisionModel():
            return value.recipe
        case DrawnNoise():
            return value.noise
    if is_noise(value):
        return noise_of(value)
    return _within(value, plain)


def _within(value: Any, change: Any) -> Any:
    """Convert the items of plain lists, tuples and dicts; return the same object if nothing changes."""
    if type(value) is dict:
        changed = {name: change(item) for name, item in value.items()}
        return changed if any(changed[name] is not value[name] for name in value) else value
    if type(value) in (list, tuple):
        items = [change(item) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return items if type(value) is list else tuple(items)
    return value


def _is_conditioning(value: Any) -> bool:
    return type(value) is list and all(
        isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[0], Tensor) and type(entry[1]) is dict
        for entry in value
    )
