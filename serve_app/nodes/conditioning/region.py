"""The nodes that say where, when and how strongly the entries of a CONDITIONING count.

They only write an entry's options; `sampling/guidance/conditioning.py` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from serve_app.sampling.guidance.conditioning import with_options
from serve_app.values import Conditioning

CELL = 8
"""Pixels that a cell of latents is wide and high."""

SIDE = {"default": 64, "min": 64, "max": 16384, "step": CELL}
OFFSET = {"default": 0, "min": 0, "max": 16384, "step": CELL}
SHARE_SIDE = {"default": 1.0, "min": 0, "max": 1.0, "step": 0.01}
SHARE_OFFSET = {"default": 0, "min": 0, "max": 1.0, "step": 0.01}
STRENGTH = {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.01}


class ConditioningSetArea:
    """Entries that count in a rectangle of pixels."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "append"
    CATEGORY = "model/conditioning/transform"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "conditioning": ("CONDITIONING",),
                "width": ("INT", SIDE),
                "height": ("INT", SIDE),
                "x": ("INT", OFFSET),
                "y": ("INT", OFFSET),
                "strength": ("FLOAT", STRENGTH),
            }
        }

    def append(
        self, conditioning: Conditioning, width: int, height: int, x: int, y: int, strength: float
    ) -> tuple[Conditioning]:
        """Return the entries with an area in cells and a strength."""
        area = (height // CELL, width // CELL, y // CELL, x // CELL)
        return (with_options(conditioning, area=area, strength=strength, set_area_to_bounds=False),)


class ConditioningSetAreaPercentage:
    """Entries that count in a rectangle whose sides are shares of the image's."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "append"
    CATEGORY = "model/conditioning/transform"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "conditioning": ("CONDITIONING",),
                "width": ("FLOAT", SHARE_SIDE),
                "height": ("FLOAT", SHARE_SIDE),
                "x": ("FLOAT", SHARE_OFFSET),
                "y": ("FLOAT", SHARE_OFFSET),
                "strength": ("FLOAT", STRENGTH),
            }
        }

    def append(
        self, conditioning: Conditioning, width: float, height: float, x: float, y: float, strength: float
    ) -> tuple[Conditioning]:
        """Return the entries with an area in shares and a strength."""
        area = ("percentage", height, width, y, x)
        return (with_options(conditioning, area=area, strength=strength, set_area_to_bounds=False),)


class ConditioningSetAreaStrength:
    """Entries that count more or less beside others."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "append"
    CATEGORY = "model/conditioning/transform"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"conditioning": ("CONDITIONING",), "strength": ("FLOAT", STRENGTH)}}

    def append(self, conditioning: Conditioning, strength: float) -> tuple[Conditioning]:
        """Return the entries with a strength."""
        return (with_options(conditioning, strength=strength),)


class ConditioningSetMask:
    """Entries that count as strongly as a mask says."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "append"
    CATEGORY = "model/conditioning/transform"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "conditioning": ("CONDITIONING",),
                "mask": ("MASK",),
                "strength": ("FLOAT", STRENGTH),
                "set_cond_area": (["default", "mask bounds"],),
            }
        }

    def append(
        self, conditioning: Conditioning, mask: Tensor, set_cond_area: str, strength: float
    ) -> tuple[Conditioning]:
        """Return the entries with a mask (N,H,W), and whether only the area that bounds it is evaluated."""
        mask = mask[None] if mask.ndim < 3 else mask
        to_bounds = set_cond_area != "default"
        return (with_options(conditioning, mask=mask, set_area_to_bounds=to_bounds, mask_strength=strength),)


class ConditioningSetTimestepRange:
    """Entries that count during a part of the sampling."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "set_range"
    CATEGORY = "model/conditioning/transform"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "conditioning": ("CONDITIONING",),
                "start": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.001}),
                "end": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.001}),
            }
        }

    def set_range(self, conditioning: Conditioning, start: float, end: float) -> tuple[Conditioning]:
        """Return the entries with the shares of the noise levels, from the top, that they count between."""
        return (with_options(conditioning, start_percent=start, end_percent=end),)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "ConditioningSetArea": ConditioningSetArea,
    "ConditioningSetAreaPercentage": ConditioningSetAreaPercentage,
    "ConditioningSetAreaStrength": ConditioningSetAreaStrength,
    "ConditioningSetMask": ConditioningSetMask,
    "ConditioningSetTimestepRange": ConditioningSetTimestepRange,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "ConditioningSetArea": "Conditioning (Set Area)",
    "ConditioningSetAreaPercentage": "Conditioning (Set Area with Percentage)",
    "ConditioningSetAreaStrength": "Conditioning (Set Area Strength)",
    "ConditioningSetMask": "Conditioning (Set Mask)",
}
