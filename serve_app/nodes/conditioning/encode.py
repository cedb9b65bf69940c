"""The nodes that make CONDITIONING from text and from other CONDITIONING.

Where and when an entry counts is said by those in `conditioning_region`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from serve_app.execution.runtime import Runtime
from serve_app.recipe import ClipSkip, Recipe
from serve_app.values import Conditioning


class CLIPTextEncode:
    """Text to conditioning, in ComfyUI's prompt syntax."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "encode"
    CATEGORY = "model/conditioning"
    DESCRIPTION = "Encodes a text prompt into conditioning that guides the diffusion model."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "text": ("STRING", {"multiline": True, "dynamicPrompts": True}),
                "clip": ("CLIP",),
            },
            "hidden": {"runtime": "RUNTIME"},
        }

    async def encode(self, clip: Recipe, text: str, runtime: Runtime) -> tuple[Conditioning]:
        """Return the text's conditioning."""
        return (await runtime.encode_text(clip, text),)


class CLIPSetLastLayer:
    """Clip skip: take the text encoder's output from an earlier layer."""

    RETURN_TYPES = ("CLIP",)
    FUNCTION = "set_last_layer"
    CATEGORY = "model/conditioning"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        layer = ("INT", {"default": -1, "min": -24, "max": -1, "step": 1})
        return {"required": {"clip": ("CLIP",), "stop_at_clip_layer": layer}}

    def set_last_layer(self, clip: Recipe, stop_at_clip_layer: int) -> tuple[Recipe]:
        return (clip.with_patch(ClipSkip(stop_at_clip_layer)),)


class ConditioningCombine:
    """All entries of both."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "combine"
    CATEGORY = "model/conditioning/transform"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"conditioning_1": ("CONDITIONING",), "conditioning_2": ("CONDITIONING",)}}

    def combine(self, conditioning_1: Conditioning, conditioning_2: Conditioning) -> tuple[Conditioning]:
        """Return the entries of the first, then those of the second."""
        return ([*conditioning_1, *conditioning_2],)


class ConditioningAverage:
    """Entries part of the way from another conditioning to what they were."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "addWeighted"
    CATEGORY = "model/conditioning/transform"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        strength = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01})
        return {
            "required": {
                "conditioning_to": ("CONDITIONING",),
                "conditioning_from": ("CONDITIONING",),
                "conditioning_to_strength": strength,
            }
        }

    def addWeighted(
        self, conditioning_to: Conditioning, conditioning_from: Conditioning, conditioning_to_strength: float
    ) -> tuple[Conditioning]:
        """Return each entry of `conditioning_to`, mixed with the first of the other.

        The other's text is cut to the entry's length, or followed by zeros; so are their pooled outputs mixed, and one
        that only the other has is taken as it is.
        """
        share = conditioning_to_strength
        other, said = conditioning_from[0]
        pooled = said.get("pooled_output")
        made = []
        for cond, options in conditioning_to:
            start = other[:, : cond.shape[1]]
            missing = cond.shape[1] - start.shape[1]
            start = torch.nn.functional.pad(start, (0, 0, 0, missing))
            mixed = dict(options)
            if pooled is not None:
                own = options.get("pooled_output")
                mixed["pooled_output"] = pooled if own is None else own * share + pooled * (1.0 - share)
            made.append((cond * share + start * (1.0 - share), mixed))
        return (made,)


class ConditioningConcat:
    """Entries followed by the text of another conditioning."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "concat"
    CATEGORY = "model/conditioning/transform"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"conditioning_to": ("CONDITIONING",), "conditioning_from": ("CONDITIONING",)}}

    def concat(self, conditioning_to: Conditioning, conditioning_from: Conditioning) -> tuple[Conditioning]:
        """Return each entry of `conditioning_to` with the first text of the other behind its own."""
        following = conditioning_from[0][0]
        return ([(torch.cat((cond, following), dim=1), dict(options)) for cond, options in conditioning_to],)


class ConditioningZeroOut:
    """Entries that say nothing: all zeros."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "zero_out"
    CATEGORY = "model/conditioning/transform"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"conditioning": ("CONDITIONING",)}}

    def zero_out(self, conditioning: Conditioning) -> tuple[Conditioning]:
        """Return the entries with zeros for their texts and pooled outputs."""
        made = []
        for cond, options in conditioning:
            zeroed = dict(options)
            if options.get("pooled_output") is not None:
                zeroed["pooled_output"] = torch.zeros_like(options["pooled_output"])
            made.append((torch.zeros_like(cond), zeroed))
        return (made,)


class ConditioningMultiply:
    """Entries times a number."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "multiply"
    CATEGORY = "model/conditioning/transform"
    SEARCH_ALIASES = ("scale conditioning", "scale prompt", "multiply conditioning", "multiply prompt")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        multiplier = ("FLOAT", {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01})
        return {"required": {"conditioning": ("CONDITIONING",), "multiplier": multiplier}}

    def multiply(self, conditioning: Conditioning, multiplier: float) -> tuple[Conditioning]:
        """Return the entries with their texts and pooled outputs multiplied."""
        made = []
        for cond, options in conditioning:
            scaled = dict(options)
            if options.get("pooled_output") is not None:
                scaled["pooled_output"] = options["pooled_output"] * multiplier
            made.append((cond * multiplier, scaled))
        return (made,)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "CLIPTextEncode": CLIPTextEncode,
    "CLIPSetLastLayer": CLIPSetLastLayer,
    "ConditioningAverage": ConditioningAverage,
    "ConditioningCombine": ConditioningCombine,
    "ConditioningConcat": ConditioningConcat,
    "ConditioningZeroOut": ConditioningZeroOut,
    "ConditioningMultiply": ConditioningMultiply,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "CLIPTextEncode": "CLIP Text Encode (Prompt)",
    "CLIPSetLastLayer": "CLIP Set Last Layer",
    "ConditioningAverage": "Conditioning (Average)",
    "ConditioningCombine": "Conditioning (Combine)",
    "ConditioningConcat": "Conditioning (Concat)",
    "ConditioningZeroOut": "Conditioning Zero Out",
    "ConditioningMultiply": "Conditioning (Multiply)",
}
