"""The nodes that set where, when and by which hooks the entries of a CONDITIONING count, in one, for one or a pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from serve_app.nodes.conditioning.region import STRENGTH
from serve_app.recipe import Hooks
from serve_app.sampling.guidance.conditioning import with_options
from serve_app.sampling.guidance.hooks import combined
from serve_app.values import Conditioning

Range = tuple[float, float]
"""TIMESTEPS_RANGE: shares of the sampling."""

COND = ("CONDITIONING",)
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
    timesteps: Range | None = None,
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


def _properties() -> dict[str, Any]:
    return {"strength": ("FLOAT", STRENGTH), "set_cond_area": (["default", "mask bounds"],)}


def _optional() -> dict[str, Any]:
    return {"mask": ("MASK",), "hooks": ("HOOKS",), "timesteps": ("TIMESTEPS_RANGE",)}


class ConditioningSetProperties:
    """Set them for the entries."""

    RETURN_TYPES = COND
    FUNCTION = "set_properties"
    CATEGORY = SINGLE
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"cond_NEW": COND, **_properties()}, "optional": _optional()}

    def set_properties(self, cond_NEW: Conditioning, **given: Any) -> tuple[Conditioning]:
        return (_set(cond_NEW, **given),)


class ConditioningSetPropertiesAndCombine:
    """Set them for entries that are put behind others."""

    RETURN_TYPES = COND
    FUNCTION = "set_properties"
    CATEGORY = SINGLE
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"cond": COND, "cond_NEW": COND, **_properties()}, "optional": _optional()}

    def set_properties(self, cond: Conditioning, cond_NEW: Conditioning, **given: Any) -> tuple[Conditioning]:
        return ([*cond, *_set(cond_NEW, **given)],)


class PairConditioningSetProperties:
    """Set them for the entries of a positive and a negative."""

    RETURN_TYPES = COND * 2
    RETURN_NAMES = ("positive", "negative")
    FUNCTION = "set_properties"
    CATEGORY = PAIR
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        required = {"positive_NEW": COND, "negative_NEW": COND, **_properties()}
        return {"required": required, "optional": _optional()}

    def set_properties(
        self, positive_NEW: Conditioning, negative_NEW: Conditioning, **given: Any
    ) -> tuple[Conditioning, Conditioning]:
        return _set(positive_NEW, **given), _set(negative_NEW, **given)


class PairConditioningSetPropertiesAndCombine:
    """Set them for entries that are put behind those of a positive and a negative."""

    RETURN_TYPES = COND * 2
    RETURN_NAMES = ("positive", "negative")
    FUNCTION = "set_properties"
    CATEGORY = PAIR
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        names = ("positive", "negative", "positive_NEW", "negative_NEW")
        return {"required": {**dict.fromkeys(names, COND), **_properties()}, "optional": _optional()}

    def set_properties(
        self,
        positive: Conditioning,
        negative: Conditioning,
        positive_NEW: Conditioning,
        negative_NEW: Conditioning,
        **given: Any,
    ) -> tuple[Conditioning, Conditioning]:
        return [*positive, *_set(positive_NEW, **given)], [*negative, *_set(negative_NEW, **given)]


class PairConditioningCombine:
    """All entries of two positives, and of two negatives."""

    RETURN_TYPES = COND * 2
    RETURN_NAMES = ("positive", "negative")
    FUNCTION = "combine"
    CATEGORY = PAIR
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": dict.fromkeys(("positive_A", "negative_A", "positive_B", "negative_B"), COND)}

    def combine(
        self, positive_A: Conditioning, negative_A: Conditioning, positive_B: Conditioning, negative_B: Conditioning
    ) -> tuple[Conditioning, Conditioning]:
        return [*positive_A, *positive_B], [*negative_A, *negative_B]


class ConditioningSetDefaultCombine:
    """Entries that count where the others leave something over."""

    RETURN_TYPES = COND
    FUNCTION = "set_default_and_combine"
    CATEGORY = SINGLE
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"cond": COND, "cond_DEFAULT": COND}, "optional": {"hooks": ("HOOKS",)}}

    def set_default_and_combine(
        self, cond: Conditioning, cond_DEFAULT: Conditioning, hooks: Hooks | None = None
    ) -> tuple[Conditioning]:
        """Return all entries, those of `cond_DEFAULT` filling the weight others leave. hooks: of those."""
        return ([*cond, *_as_default(cond_DEFAULT, hooks)],)


class PairConditioningSetDefaultCombine:
    """Entries of a positive and a negative that count where the others leave something over."""

    RETURN_TYPES = COND * 2
    RETURN_NAMES = ("positive", "negative")
    FUNCTION = "set_default_and_combine"
    CATEGORY = PAIR
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        names = ("positive", "negative", "positive_DEFAULT", "negative_DEFAULT")
        return {"required": dict.fromkeys(names, COND), "optional": {"hooks": ("HOOKS",)}}

    def set_default_and_combine(
        self,
        positive: Conditioning,
        negative: Conditioning,
        positive_DEFAULT: Conditioning,
        negative_DEFAULT: Conditioning,
        hooks: Hooks | None = None,
    ) -> tuple[Conditioning, Conditioning]:
        """Return both with their defaults, which fill the weight others leave. hooks: of the defaults."""
        return (
            [*positive, *_as_default(positive_DEFAULT, hooks)],
            [*negative, *_as_default(negative_DEFAULT, hooks)],
        )


def _as_default(conditioning: Conditioning, hooks: Hooks | None) -> Conditioning:
    return with_options(with_hooks(conditioning, hooks), default=True)


class ConditioningTimestepsRange:
    """A part of the sampling, what is before it and what is after."""

    RETURN_TYPES = ("TIMESTEPS_RANGE",) * 3
    RETURN_NAMES = ("TIMESTEPS_RANGE", "BEFORE_RANGE", "AFTER_RANGE")
    FUNCTION = "create_range"
    CATEGORY = "advanced/hooks"
    EXPERIMENTAL = True
    SEARCH_ALIASES = ("prompt scheduling", "timestep segments", "conditioning phases")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        shares = {"start_percent": 0.0, "end_percent": 1.0}
        return {
            "required": {
                name: ("FLOAT", {"default": default, "min": 0.0, "max": 1.0, "step": 0.001})
                for name, default in shares.items()
            }
        }

    def create_range(self, start_percent: float, end_percent: float) -> tuple[Range, Range, Range]:
        return (start_percent, end_percent), (0.0, start_percent), (end_percent, 1.0)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "ConditioningSetProperties": ConditioningSetProperties,
    "ConditioningSetPropertiesAndCombine": ConditioningSetPropertiesAndCombine,
    "PairConditioningSetProperties": PairConditioningSetProperties,
    "PairConditioningSetPropertiesAndCombine": PairConditioningSetPropertiesAndCombine,
    "PairConditioningCombine": PairConditioningCombine,
    "ConditioningSetDefaultCombine": ConditioningSetDefaultCombine,
    "PairConditioningSetDefaultCombine": PairConditioningSetDefaultCombine,
    "ConditioningTimestepsRange": ConditioningTimestepsRange,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "ConditioningSetProperties": "Cond Set Props",
    "ConditioningSetPropertiesAndCombine": "Cond Set Props Combine",
    "PairConditioningSetProperties": "Cond Pair Set Props",
    "PairConditioningSetPropertiesAndCombine": "Cond Pair Set Props Combine",
    "PairConditioningCombine": "Cond Pair Combine",
    "ConditioningSetDefaultCombine": "Cond Set Default Combine",
    "PairConditioningSetDefaultCombine": "Cond Pair Set Default Combine",
    "ConditioningTimestepsRange": "Timesteps Range",
}
