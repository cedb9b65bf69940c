"""Values on links as packs see them, and back: recipes as objects, conditionings as lists that may be assigned to.

`shown` is applied to what a pack's node is given, and `plain` to what it returns; so also around the server's own nodes
where a pack calls them. Whatever is mutable is new each time: what a pack changes in place is its own.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from serve_app.packs.comfy.clip_vision import ClipVisionModel, Output
from serve_app.packs.comfy.controlnet import ControlNet
from serve_app.packs.comfy.model_patcher import ModelPatcher
from serve_app.packs.comfy.samplers import KSAMPLER, CFGGuider, DrawnNoise, Sampler, is_noise, noise_of
from serve_app.packs.comfy.sd import CLIP, VAE
from serve_app.recipe import Recipe
from serve_app.values import ClipVisionOutput, Control, Guider, Noise, SamplerChoice


def shown(value: Any) -> Any:
    """Return a value as packs see it; lists, tuples and dicts anew where something in them changes."""
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
    """Return a value as it goes on a link. Errors: those of the objects, for what no link can carry."""
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
    """Return plain lists, tuples and dicts with what is in them changed; the same object where nothing is."""
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
