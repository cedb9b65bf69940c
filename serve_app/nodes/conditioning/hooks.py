"""The nodes that make HOOKS: LoRAs for some entries of a CONDITIONING alone, with strengths that change in time.

They make values alone. `sampling/guidance/hooks.py` says what the keyframes come to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import cos, pi
from typing import Any

from serve_app.execution.protocol import FolderChoice
from serve_app.recipe import ClipHooks, Hook, Hooks, Keyframe, Recipe
from serve_app.sampling.guidance.hooks import combined

Keyframes = tuple[Keyframe, ...]
"""HOOK_KEYFRAMES: by start_percent, those of equal ones in the order in which they came."""

STRENGTH = ("FLOAT", {"default": 1.0, "min": -20.0, "max": 20.0, "step": 0.01})
FACTOR = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.001})
PRINT = {"print_keyframes": ("BOOLEAN", {"default": False, "advanced": True})}
NO_KEYFRAMES: Keyframes = ()


def _share(default: float) -> tuple[str, dict[str, Any]]:
    return ("FLOAT", {"default": default, "min": 0.0, "max": 1.0, "step": 0.001})


class CreateHookLora:
    """A LoRA as a hook."""

    RETURN_TYPES = ("HOOKS",)
    FUNCTION = "create_hook"
    CATEGORY = "advanced/hooks/create"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        required = {"lora_name": (FolderChoice("loras"),), "strength_model": STRENGTH, "strength_clip": STRENGTH}
        return {"required": required, "optional": {"prev_hooks": ("HOOKS",)}}

    def create_hook(
        self, lora_name: str, strength_model: float, strength_clip: float, prev_hooks: Hooks | None = None
    ) -> tuple[Hooks]:
        """Return the hooks before with this one; one that changes nothing is left out."""
        if strength_model == 0 and strength_clip == 0:
            return (prev_hooks or (),)
        return (combined(prev_hooks, (Hook(lora_name, strength_model, strength_clip),)) or (),)


class CreateHookLoraModelOnly:
    """A LoRA as a hook of the backbone."""

    RETURN_TYPES = ("HOOKS",)
    FUNCTION = "create_hook_model_only"
    CATEGORY = "advanced/hooks/create"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        required = {"lora_name": (FolderChoice("loras"),), "strength_model": STRENGTH}
        return {"required": required, "optional": {"prev_hooks": ("HOOKS",)}}

    def create_hook_model_only(
        self, lora_name: str, strength_model: float, prev_hooks: Hooks | None = None
    ) -> tuple[Hooks]:
        """Return the hooks before with this one; one that changes nothing is left out."""
        return CreateHookLora().create_hook(lora_name, strength_model, 0.0, prev_hooks)


class CreateHookModelAsLora:
    """What another checkpoint differs by, as a hook."""

    RETURN_TYPES = ("HOOKS",)
    FUNCTION = "create_hook"
    CATEGORY = "advanced/hooks/create"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        checkpoint = (FolderChoice("checkpoints"),)
        required = {"ckpt_name": checkpoint, "strength_model": STRENGTH, "strength_clip": STRENGTH}
        return {"required": required, "optional": {"prev_hooks": ("HOOKS",)}}

    def create_hook(
        self, ckpt_name: str, strength_model: float, strength_clip: float, prev_hooks: Hooks | None = None
    ) -> tuple[Hooks]:
        """Return the hooks before with this one."""
        hook = Hook(ckpt_name, strength_model, strength_clip, folder="checkpoints")
        return (combined(prev_hooks, (hook,)) or (),)


class CreateHookModelAsLoraModelOnly:
    """What the backbone of another checkpoint differs by, as a hook of the backbone."""

    RETURN_TYPES = ("HOOKS",)
    FUNCTION = "create_hook_model_only"
    CATEGORY = "advanced/hooks/create"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        required = {"ckpt_name": (FolderChoice("checkpoints"),), "strength_model": STRENGTH}
        return {"required": required, "optional": {"prev_hooks": ("HOOKS",)}}

    def create_hook_model_only(
        self, ckpt_name: str, strength_model: float, prev_hooks: Hooks | None = None
    ) -> tuple[Hooks]:
        """Return the hooks before with this one."""
        return CreateHookModelAsLora().create_hook(ckpt_name, strength_model, 0.0, prev_hooks)


class SetHookKeyframes:
    """Change the strengths of hooks in time."""

    RETURN_TYPES = ("HOOKS",)
    FUNCTION = "set_hook_keyframes"
    CATEGORY = "advanced/hooks/scheduling"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"hooks": ("HOOKS",)}, "optional": {"hook_kf": ("HOOK_KEYFRAMES",)}}

    def set_hook_keyframes(self, hooks: Hooks, hook_kf: Keyframes | None = None) -> tuple[Hooks]:
        """Return the hooks with these keyframes in place of their own."""
        return (hooks if hook_kf is None else tuple(replace(hook, keyframes=hook_kf) for hook in hooks),)


class CreateHookKeyframe:
    """A factor of strength from a share of the sampling on."""

    RETURN_TYPES = ("HOOK_KEYFRAMES",)
    RETURN_NAMES = ("HOOK_KF",)
    FUNCTION = "create_hook_keyframe"
    CATEGORY = "advanced/hooks/scheduling"
    EXPERIMENTAL = True
    SEARCH_ALIASES = ("hook scheduling", "strength animation", "timed hook")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"strength_mult": STRENGTH, "start_percent": _share(0.0)},
            "optional": {"prev_hook_kf": ("HOOK_KEYFRAMES",)},
        }

    def create_hook_keyframe(
        self, strength_mult: float, start_percent: float, prev_hook_kf: Keyframes = NO_KEYFRAMES
    ) -> tuple[Keyframes]:
        """Return the keyframes before with this one."""
        return (_in_order([*prev_hook_kf, Keyframe(strength_mult, start_percent)]),)


class CreateHookKeyframesInterpolated:
    """Factors of strength from one to another."""

    RETURN_TYPES = ("HOOK_KEYFRAMES",)
    RETURN_NAMES = ("HOOK_KF",)
    FUNCTION = "create_hook_keyframes"
    CATEGORY = "advanced/hooks/scheduling"
    EXPERIMENTAL = True
    SEARCH_ALIASES = ("ease hook strength", "smooth hook transition", "interpolate keyframes")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "strength_start": FACTOR,
                "strength_end": FACTOR,
                "interpolation": (list(_EASING),),
                "start_percent": _share(0.0),
                "end_percent": _share(1.0),
                "keyframes_count": ("INT", {"default": 5, "min": 2, "max": 100, "step": 1}),
                **PRINT,
            },
            "optional": {"prev_hook_kf": ("HOOK_KEYFRAMES",)},
        }

    def create_hook_keyframes(
        self,
        strength_start: float,
        strength_end: float,
        interpolation: str,
        start_percent: float,
        end_percent: float,
        keyframes_count: int,
        print_keyframes: bool = False,
        prev_hook_kf: Keyframes = NO_KEYFRAMES,
    ) -> tuple[Keyframes]:
        """Return the keyframes before with as many, spread evenly from start to end. print_keyframes: no effect."""
        ease = _EASING[interpolation]
        shares = (number / (keyframes_count - 1) for number in range(keyframes_count))
        factors = [strength_start + (strength_end - strength_start) * ease(share) for share in shares]
        return (_in_order([*prev_hook_kf, *_spread(factors, start_percent, end_percent)]),)


class CreateHookKeyframesFromFloats:
    """Factors of strength, one after another."""

    RETURN_TYPES = ("HOOK_KEYFRAMES",)
    RETURN_NAMES = ("HOOK_KF",)
    FUNCTION = "create_hook_keyframes"
    CATEGORY = "advanced/hooks/scheduling"
    EXPERIMENTAL = True
    SEARCH_ALIASES = ("batch keyframes", "strength list to keyframes")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        floats = ("FLOATS", {"default": -1, "min": -1, "step": 0.001, "forceInput": True})
        return {
            "required": {
                "floats_strength": floats,
                "start_percent": _share(0.0),
                "end_percent": _share(1.0),
                **PRINT,
            },
            "optional": {"prev_hook_kf": ("HOOK_KEYFRAMES",)},
        }

    def create_hook_keyframes(
        self,
        floats_strength: float | Iterable[float],
        start_percent: float,
        end_percent: float,
        print_keyframes: bool = False,
        prev_hook_kf: Keyframes = NO_KEYFRAMES,
    ) -> tuple[Keyframes]:
        """Return the keyframes before with one of each number, spread evenly. print_keyframes: no effect."""
        factors = list(floats_strength) if isinstance(floats_strength, Iterable) else [floats_strength]
        return (_in_order([*prev_hook_kf, *_spread(factors, start_percent, end_percent)]),)


def _combine_node(names: str) -> type:
    class CombineHooks:
        """All hooks of several groups, each once."""

        RETURN_TYPES = ("HOOKS",)
        FUNCTION = "combine_hooks"
        CATEGORY = "advanced/hooks/combine"
        EXPERIMENTAL = True
        SEARCH_ALIASES = ("merge hooks",) if len(names) == 2 else ()

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {}, "optional": {f"hooks_{name}": ("HOOKS",) for name in names}}

        def combine_hooks(self, **given: Hooks | None) -> tuple[Hooks | None]:
            """Return the hooks in the order of the inputs' names; None if no input has any."""
            return (combined(*(given.get(f"hooks_{name}") for name in names)),)

    return CombineHooks


class SetClipHooks:
    """Change a text encoder by hooks."""

    RETURN_TYPES = ("CLIP",)
    FUNCTION = "apply_hooks"
    CATEGORY = "advanced/hooks/clip"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "clip": ("CLIP",),
                "apply_to_conds": ("BOOLEAN", {"default": True, "advanced": True}),
                "schedule_clip": ("BOOLEAN", {"default": False, "advanced": True}),
            },
            "optional": {"hooks": ("HOOKS",)},
        }

    def apply_hooks(
        self, clip: Recipe, schedule_clip: bool, apply_to_conds: bool, hooks: Hooks | None = None
    ) -> tuple[Recipe]:
        """Return the text encoder with the hooks, as it is without any."""
        if hooks is None:
            return (clip,)
        return (clip.with_patch(ClipHooks(hooks, schedule_clip, apply_to_conds)),)


def _in_order(keyframes: Iterable[Keyframe]) -> Keyframes:
    return tuple(sorted(keyframes, key=lambda keyframe: keyframe.start_percent))


def _spread(factors: Sequence[float], start: float, end: float) -> Iterable[Keyframe]:
    """Yield keyframes at even shares from start to end, of which the first is sure of a step."""
    for number, factor in enumerate(factors):
        share = start + (end - start) * number / max(len(factors) - 1, 1)
        yield Keyframe(float(factor), share, steps=int(number == 0))


_EASING: Mapping[str, Callable[[float], float]] = {
    "linear": lambda share: share,
    "ease_in": lambda share: share**2,
    "ease_out": lambda share: 1 - (1 - share) ** 2,
    "ease_in_out": lambda share: (1 - cos(share * pi)) / 2,
}

NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "CreateHookLora": CreateHookLora,
    "CreateHookLoraModelOnly": CreateHookLoraModelOnly,
    "CreateHookModelAsLora": CreateHookModelAsLora,
    "CreateHookModelAsLoraModelOnly": CreateHookModelAsLoraModelOnly,
    "SetHookKeyframes": SetHookKeyframes,
    "CreateHookKeyframe": CreateHookKeyframe,
    "CreateHookKeyframesInterpolated": CreateHookKeyframesInterpolated,
    "CreateHookKeyframesFromFloats": CreateHookKeyframesFromFloats,
    "CombineHooks2": _combine_node("AB"),
    "CombineHooks4": _combine_node("ABCD"),
    "CombineHooks8": _combine_node("ABCDEFGH"),
    "SetClipHooks": SetClipHooks,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "CreateHookLora": "Create Hook LoRA",
    "CreateHookLoraModelOnly": "Create Hook LoRA (MO)",
    "CreateHookModelAsLora": "Create Hook Model as LoRA",
    "CreateHookModelAsLoraModelOnly": "Create Hook Model as LoRA (MO)",
    "SetHookKeyframes": "Set Hook Keyframes",
    "CreateHookKeyframe": "Create Hook Keyframe",
    "CreateHookKeyframesInterpolated": "Create Hook Keyframes Interp.",
    "CreateHookKeyframesFromFloats": "Create Hook Keyframes From Floats",
    "CombineHooks2": "Combine Hooks [2]",
    "CombineHooks4": "Combine Hooks [4]",
    "CombineHooks8": "Combine Hooks [8]",
    "SetClipHooks": "Set CLIP Hooks",
}
