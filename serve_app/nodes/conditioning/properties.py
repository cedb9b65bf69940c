"""The nodes that set where, when and by which hooks the entries of a CONDITIONING count, in one, for one or a pair."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from torch import Tensor

from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Choice, Float
from serve_app.nodes.sockets import CONDITIONING, HOOKS, MASK, TIMESTEPS_RANGE
from serve_app.recipe.hooks import Hooks
from serve_app.sampling.guidance.conditioning import with_options
from serve_app.sampling.guidance.hooks import combined
from serve_app.values import Conditioning

SINGLE, PAIR = "advanced/hooks/cond single", "advanced/hooks/cond pair"


def with_hooks(conditioning: Conditioning, hooks: Hooks | None) -> Conditioning:
    """Return the entries with hooks beside their own."""
    if hooks is None:
        return conditioning
    return [(cond, {**said, "hooks": combined(said.get("hooks"), hooks)}) for cond, said in conditioning]


def _set(
    conditioning: Conditioning,
    strength: float,
    set_cond_area: str,
    mask: Tensor | None = None,
    hooks: Hooks | None = None,
    timesteps: tuple[float, float] | None = None,
) -> Conditioning:
    """Return the entries with what is given. mask: (H,W) or (N,H,W); strength is the mask's."""
    conditioning = with_hooks(conditioning, hooks)
    if mask is not None:
        mask = mask[None] if mask.ndim < 3 else mask
        to_bounds = set_cond_area != "default"
        conditioning = with_options(conditioning, mask=mask, set_area_to_bounds=to_bounds, mask_strength=strength)
    if timesteps is not None:
        conditioning = with_options(conditioning, start_percent=timesteps[0], end_percent=timesteps[1])
    return conditioning


Strength: TypeAlias = Annotated[float, Float(1.0, min=0.0, max=10.0, step=0.01)]
SetCondArea: TypeAlias = Annotated[str, Choice(["default", "mask bounds"])]


@node("ConditioningSetProperties", "Cond Set Props", category=SINGLE, function="set_properties", experimental=True)
def conditioning_set_properties(
    cond_NEW: CONDITIONING,
    strength: Strength,
    set_cond_area: SetCondArea,
    mask: MASK | None = None,
    hooks: HOOKS | None = None,
    timesteps: TIMESTEPS_RANGE | None = None,
) -> CONDITIONING:
    """Set them for the entries."""
    return _set(cond_NEW, strength, set_cond_area, mask, hooks, timesteps)


@node(
    "ConditioningSetPropertiesAndCombine",
    "Cond Set Props Combine",
    category=SINGLE,
    function="set_properties",
    experimental=True,
)
def conditioning_set_properties_and_combine(
    cond: CONDITIONING,
    cond_NEW: CONDITIONING,
    strength: Strength,
    set_cond_area: SetCondArea,
    mask: MASK | None = None,
    hooks: HOOKS | None = None,
    timesteps: TIMESTEPS_RANGE | None = None,
) -> CONDITIONING:
    """Set them for entries that are put behind others."""
    return [*cond, *_set(cond_NEW, strength, set_cond_area, mask, hooks, timesteps)]


@node(
    "PairConditioningSetProperties",
    "Cond Pair Set Props",
    category=PAIR,
    function="set_properties",
    return_names=("positive", "negative"),
    experimental=True,
)
def pair_conditioning_set_properties(
    positive_NEW: CONDITIONING,
    negative_NEW: CONDITIONING,
    strength: Strength,
    set_cond_area: SetCondArea,
    mask: MASK | None = None,
    hooks: HOOKS | None = None,
    timesteps: TIMESTEPS_RANGE | None = None,
) -> tuple[CONDITIONING, CONDITIONING]:
    """Set them for the entries of a positive and a negative."""
    given = (strength, set_cond_area, mask, hooks, timesteps)
    return _set(positive_NEW, *given), _set(negative_NEW, *given)


@node(
    "PairConditioningSetPropertiesAndCombine",
    "Cond Pair Set Props Combine",
    category=PAIR,
    function="set_properties",
    return_names=("positive", "negative"),
    experimental=True,
)
def pair_conditioning_set_properties_and_combine(
    positive: CONDITIONING,
    negative: CONDITIONING,
    positive_NEW: CONDITIONING,
    negative_NEW: CONDITIONING,
    strength: Strength,
    set_cond_area: SetCondArea,
    mask: MASK | None = None,
    hooks: HOOKS | None = None,
    timesteps: TIMESTEPS_RANGE | None = None,
) -> tuple[CONDITIONING, CONDITIONING]:
    """Set them for entries that are put behind those of a positive and a negative."""
    given = (strength, set_cond_area, mask, hooks, timesteps)
    return [*positive, *_set(positive_NEW, *given)], [*negative, *_set(negative_NEW, *given)]


@node(
    "PairConditioningCombine",
    "Cond Pair Combine",
    category=PAIR,
    function="combine",
    return_names=("positive", "negative"),
    experimental=True,
)
def pair_conditioning_combine(
    positive_A: CONDITIONING, negative_A: CONDITIONING, positive_B: CONDITIONING, negative_B: CONDITIONING
) -> tuple[CONDITIONING, CONDITIONING]:
    """All entries of two positives, and of two negatives."""
    return [*positive_A, *positive_B], [*negative_A, *negative_B]


@node(
    "ConditioningSetDefaultCombine",
    "Cond Set Default Combine",
    category=SINGLE,
    function="set_default_and_combine",
    experimental=True,
)
def conditioning_set_default_combine(
    cond: CONDITIONING, cond_DEFAULT: CONDITIONING, hooks: HOOKS | None = None
) -> CONDITIONING:
    """Entries that count where the others leave something over.

    Return all entries, those of `cond_DEFAULT` filling the weight others leave. hooks: of those.
    """
    return [*cond, *_as_default(cond_DEFAULT, hooks)]


@node(
    "PairConditioningSetDefaultCombine",
    "Cond Pair Set Default Combine",
    category=PAIR,
    function="set_default_and_combine",
    return_names=("positive", "negative"),
    experimental=True,
)
def pair_conditioning_set_default_combine(
    positive: CONDITIONING,
    negative: CONDITIONING,
    positive_DEFAULT: CONDITIONING,
    negative_DEFAULT: CONDITIONING,
    hooks: HOOKS | None = None,
) -> tuple[CONDITIONING, CONDITIONING]:
    """Entries of a positive and a negative that count where the others leave something over.

    Return both with their defaults, which fill the weight others leave. hooks: of the defaults.
    """
    return (
        [*positive, *_as_default(positive_DEFAULT, hooks)],
        [*negative, *_as_default(negative_DEFAULT, hooks)],
    )


def _as_default(conditioning: Conditioning, hooks: Hooks | None) -> Conditioning:
    return with_options(with_hooks(conditioning, hooks), default=True)


@node(
    "ConditioningTimestepsRange",
    "Timesteps Range",
    category="advanced/hooks",
    function="create_range",
    return_names=("TIMESTEPS_RANGE", "BEFORE_RANGE", "AFTER_RANGE"),
    experimental=True,
    search_aliases=("prompt scheduling", "timestep segments", "conditioning phases"),
)
def conditioning_timesteps_range(
    start_percent: Annotated[float, Float(0.0, min=0.0, max=1.0, step=0.001)],
    end_percent: Annotated[float, Float(1.0, min=0.0, max=1.0, step=0.001)],
) -> tuple[TIMESTEPS_RANGE, TIMESTEPS_RANGE, TIMESTEPS_RANGE]:
    """A part of the sampling, what is before it and what is after."""
    return (start_percent, end_percent), (0.0, start_percent), (end_percent, 1.0)
