"""The nodes that make HOOKS: LoRAs for some entries of a CONDITIONING alone, with strengths that change in time.

They make values alone. `sampling/guidance/hooks.py` says what the keyframes come to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import cos, pi
from typing import Annotated, TypeAlias

from serve_app.execution.size import allow_levels
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Bool, Choice, File, Float, InputType, Int
from serve_app.nodes.sockets import CLIP, HOOK_KEYFRAMES, HOOKS
from serve_app.recipe.hooks import ClipHooks, Hook, Hooks, Keyframe
from serve_app.sampling.guidance.hooks import combined

Keyframes: TypeAlias = tuple[Keyframe, ...]
"""HOOK_KEYFRAMES: by start_percent, those of equal ones in the order in which they came."""

Strength: TypeAlias = Annotated[float, Float(1.0, min=-20.0, max=20.0, step=0.01)]
Factor: TypeAlias = Annotated[float, Float(1.0, min=0.0, max=10.0, step=0.001)]
Print: TypeAlias = Annotated[bool, Bool(False, advanced=True)]
NO_KEYFRAMES: Keyframes = ()


_EASING: Mapping[str, Callable[[float], float]] = {
    "linear": lambda share: share,
    "ease_in": lambda share: share**2,
    "ease_out": lambda share: 1 - (1 - share) ** 2,
    "ease_in_out": lambda share: (1 - cos(share * pi)) / 2,
}


def _share(default: float) -> InputType:
    return Float(default, min=0.0, max=1.0, step=0.001)


@node("CreateHookLora", "Create Hook LoRA", category="advanced/hooks/create", function="create_hook", experimental=True)
def create_hook_lora(
    lora_name: Annotated[str, File("loras")],
    strength_model: Strength,
    strength_clip: Strength,
    prev_hooks: HOOKS | None = None,
) -> HOOKS:
    """A LoRA as a hook. Return the hooks before with this one; one that changes nothing is left out."""
    if strength_model == 0 and strength_clip == 0:
        return prev_hooks or ()
    return combined(prev_hooks, (Hook(lora_name, strength_model, strength_clip),)) or ()


@node(
    "CreateHookLoraModelOnly",
    "Create Hook LoRA (MO)",
    category="advanced/hooks/create",
    function="create_hook_model_only",
    experimental=True,
)
def create_hook_lora_model_only(
    lora_name: Annotated[str, File("loras")], strength_model: Strength, prev_hooks: HOOKS | None = None
) -> HOOKS:
    """A LoRA as a hook of the backbone.

    Return the hooks before with this one; one that changes nothing is left out.
    """
    return create_hook_lora(lora_name, strength_model, 0.0, prev_hooks)


CkptName: TypeAlias = Annotated[str, File("checkpoints")]


@node(
    "CreateHookModelAsLora",
    "Create Hook Model as LoRA",
    category="advanced/hooks/create",
    function="create_hook",
    experimental=True,
)
def create_hook_model_as_lora(
    ckpt_name: CkptName, strength_model: Strength, strength_clip: Strength, prev_hooks: HOOKS | None = None
) -> HOOKS:
    """What another checkpoint differs by, as a hook. Return the hooks before with this one."""
    hook = Hook(ckpt_name, strength_model, strength_clip, folder="checkpoints")
    return combined(prev_hooks, (hook,)) or ()


@node(
    "CreateHookModelAsLoraModelOnly",
    "Create Hook Model as LoRA (MO)",
    category="advanced/hooks/create",
    function="create_hook_model_only",
    experimental=True,
)
def create_hook_model_as_lora_model_only(
    ckpt_name: CkptName, strength_model: Strength, prev_hooks: HOOKS | None = None
) -> HOOKS:
    """What the backbone of another checkpoint differs by, as a hook of the backbone."""
    return create_hook_model_as_lora(ckpt_name, strength_model, 0.0, prev_hooks)


@node(
    "SetHookKeyframes",
    "Set Hook Keyframes",
    category="advanced/hooks/scheduling",
    function="set_hook_keyframes",
    experimental=True,
)
def set_hook_keyframes(hooks: HOOKS, hook_kf: HOOK_KEYFRAMES | None = None) -> HOOKS:
    """Change the strengths of hooks in time. Return the hooks with these keyframes in place of their own."""
    return hooks if hook_kf is None else tuple(replace(hook, keyframes=hook_kf) for hook in hooks)


@node(
    "CreateHookKeyframe",
    "Create Hook Keyframe",
    category="advanced/hooks/scheduling",
    function="create_hook_keyframe",
    return_names=("HOOK_KF",),
    experimental=True,
    search_aliases=("hook scheduling", "strength animation", "timed hook"),
)
def create_hook_keyframe(
    strength_mult: Strength, start_percent: Annotated[float, _share(0.0)], prev_hook_kf: HOOK_KEYFRAMES = NO_KEYFRAMES
) -> HOOK_KEYFRAMES:
    """A factor of strength from a share of the sampling on. Return the keyframes before with this one."""
    return _in_order([*prev_hook_kf, Keyframe(strength_mult, start_percent)])


@node(
    "CreateHookKeyframesInterpolated",
    "Create Hook Keyframes Interp.",
    category="advanced/hooks/scheduling",
    function="create_hook_keyframes",
    return_names=("HOOK_KF",),
    experimental=True,
    search_aliases=("ease hook strength", "smooth hook transition", "interpolate keyframes"),
    required=("print_keyframes",),
)
def create_hook_keyframes_interpolated(
    strength_start: Factor,
    strength_end: Factor,
    interpolation: Annotated[str, Choice(_EASING)],
    start_percent: Annotated[float, _share(0.0)],
    end_percent: Annotated[float, _share(1.0)],
    keyframes_count: Annotated[int, Int(5, min=2, max=100, step=1)],
    print_keyframes: Print = False,
    prev_hook_kf: HOOK_KEYFRAMES = NO_KEYFRAMES,
) -> HOOK_KEYFRAMES:
    """Factors of strength from one to another.

    Return the keyframes before with as many, spread evenly from start to end. print_keyframes: no effect.
    """
    allow_levels(keyframes_count)
    ease = _EASING[interpolation]
    shares = (number / (keyframes_count - 1) for number in range(keyframes_count))
    factors = [strength_start + (strength_end - strength_start) * ease(share) for share in shares]
    return _in_order([*prev_hook_kf, *_spread(factors, start_percent, end_percent)])


@node(
    "CreateHookKeyframesFromFloats",
    "Create Hook Keyframes From Floats",
    category="advanced/hooks/scheduling",
    function="create_hook_keyframes",
    return_names=("HOOK_KF",),
    experimental=True,
    search_aliases=("batch keyframes", "strength list to keyframes"),
    required=("print_keyframes",),
)
def create_hook_keyframes_from_floats(
    floats_strength: Annotated[
        float | Iterable[float], InputType("FLOATS", {"default": -1, "min": -1, "step": 0.001, "forceInput": True})
    ],
    start_percent: Annotated[float, _share(0.0)],
    end_percent: Annotated[float, _share(1.0)],
    print_keyframes: Print = False,
    prev_hook_kf: HOOK_KEYFRAMES = NO_KEYFRAMES,
) -> HOOK_KEYFRAMES:
    """Factors of strength, one after another.

    Return the keyframes before with one of each number, spread evenly. print_keyframes: no effect.
    """
    factors = list(floats_strength) if isinstance(floats_strength, Iterable) else [floats_strength]
    return _in_order([*prev_hook_kf, *_spread(factors, start_percent, end_percent)])


def _combine(given: Mapping[str, Hooks | None], names: str) -> Hooks | None:
    return combined(*(given.get(f"hooks_{name}") for name in names))


def _groups(names: str) -> dict[str, InputType]:
    return {f"hooks_{name}": InputType("HOOKS") for name in names}


@node(
    "CombineHooks2",
    "Combine Hooks [2]",
    category="advanced/hooks/combine",
    function="combine_hooks",
    experimental=True,
    search_aliases=("merge hooks",),
    optional_inputs=_groups("AB"),
)
def combine_hooks_2(**given: Hooks | None) -> HOOKS | None:
    """All hooks of 2 groups, each once, in the order of the inputs' names; None if no input has any."""
    return _combine(given, "AB")


@node(
    "CombineHooks4",
    "Combine Hooks [4]",
    category="advanced/hooks/combine",
    function="combine_hooks",
    experimental=True,
    optional_inputs=_groups("ABCD"),
)
def combine_hooks_4(**given: Hooks | None) -> HOOKS | None:
    """All hooks of 4 groups, each once, in the order of the inputs' names; None if no input has any."""
    return _combine(given, "ABCD")


@node(
    "CombineHooks8",
    "Combine Hooks [8]",
    category="advanced/hooks/combine",
    function="combine_hooks",
    experimental=True,
    optional_inputs=_groups("ABCDEFGH"),
)
def combine_hooks_8(**given: Hooks | None) -> HOOKS | None:
    """All hooks of 8 groups, each once, in the order of the inputs' names; None if no input has any."""
    return _combine(given, "ABCDEFGH")


@node(
    "SetClipHooks",
    "Set CLIP Hooks",
    category="advanced/hooks/clip",
    function="apply_hooks",
    experimental=True,
    order=("clip", "apply_to_conds"),
)
def set_clip_hooks(
    clip: CLIP,
    schedule_clip: Print,
    apply_to_conds: Annotated[bool, Bool(True, advanced=True)],
    hooks: HOOKS | None = None,
) -> CLIP:
    """Change a text encoder by hooks. Return the text encoder with the hooks, as it is without any."""
    if hooks is None:
        return clip
    return clip.with_patch(ClipHooks(hooks, schedule_clip, apply_to_conds))


def _in_order(keyframes: Iterable[Keyframe]) -> Keyframes:
    return tuple(sorted(keyframes, key=lambda keyframe: keyframe.start_percent))


def _spread(factors: Sequence[float], start: float, end: float) -> Iterable[Keyframe]:
    """Yield keyframes at even shares from start to end, of which the first is sure of a step."""
    for number, factor in enumerate(factors):
        share = start + (end - start) * number / max(len(factors) - 1, 1)
        yield Keyframe(float(factor), share, steps=int(number == 0))
