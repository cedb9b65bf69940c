"""The nodes that put a patch on a MODEL by which guidance looks at branches otherwise, or at another scale."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from serve_app.nodes.model.patches import PATCHED_MODEL, number, patch_node
from serve_app.recipe import (
    CfgOverride,
    NormalizedAttention,
    PerturbedAttention,
    Recipe,
    SelfAttentionGuidance,
    SkipLayerGuidance,
    SkippedBlocks,
    TemporalRescaling,
    WeakNegative,
)

GUIDANCE = "advanced/guidance"
SHARE = 0.001
"""The step of shares of the sampling."""


def _blocks(doubles: str, singles: str = "") -> SkippedBlocks:
    """Return the blocks whose numbers stand in texts, whatever separates them."""
    return SkippedBlocks(*(tuple(map(int, re.findall(r"\d+", text))) for text in (doubles, singles)))


def _layers(**more: Any) -> tuple[str, dict[str, Any]]:
    return ("STRING", {"default": "7, 8, 9", "multiline": False, "advanced": True, **more})


def _range(start: float, end: float) -> dict[str, Any]:
    shares = {"start_percent": start, "end_percent": end}
    return {name: number(default, 0.0, 1.0, SHARE, advanced=True) for name, default in shares.items()}


def _scale(**more: Any) -> tuple[str, dict[str, Any]]:
    return number(3.0, 0.0, 10.0, 0.1, **more)


class SkipLayerGuidanceSD3:
    """Lead away from the positive without some blocks, for Stable Diffusion 3."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "skip_guidance_sd3"
    CATEGORY = GUIDANCE
    DESCRIPTION = "Leads away from what a diffusion transformer without some of its layers makes of the positive."
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "layers": _layers(), "scale": _scale(), **_range(0.01, 0.15)}}

    def skip_guidance_sd3(
        self, model: Recipe, layers: str, scale: float, start_percent: float, end_percent: float
    ) -> tuple[Recipe]:
        """Return the model with the patch, or as it is where no layer is named."""
        return (_led(model, _blocks(layers), scale, start_percent, end_percent),)


class SkipLayerGuidanceDiT:
    """Lead away from the positive without some blocks."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "skip_guidance"
    CATEGORY = GUIDANCE
    DESCRIPTION = SkipLayerGuidanceSD3.DESCRIPTION
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "double_layers": _layers(),
                "single_layers": _layers(),
                "scale": _scale(),
                **_range(0.01, 0.15),
                "rescaling_scale": number(0.0, 0.0, 10.0),
            }
        }

    def skip_guidance(
        self,
        model: Recipe,
        double_layers: str,
        single_layers: str,
        scale: float,
        start_percent: float,
        end_percent: float,
        rescaling_scale: float,
    ) -> tuple[Recipe]:
        """Return the model with the patch, or as it is where no layer is named."""
        skipped = _blocks(double_layers, single_layers)
        return (_led(model, skipped, scale, start_percent, end_percent, rescaling_scale),)


class SkipLayerGuidanceDiTSimple:
    """Make the negative without some blocks."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "skip_guidance"
    CATEGORY = GUIDANCE
    DESCRIPTION = "Has a diffusion transformer make the negative without some of its layers, at no further cost."
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "double_layers": _layers(),
                "single_layers": _layers(),
                **_range(0.0, 1.0),
            }
        }

    def skip_guidance(
        self, model: Recipe, double_layers: str, single_layers: str, start_percent: float, end_percent: float
    ) -> tuple[Recipe]:
        """Return the model with the patch, or as it is where no layer is named."""
        skipped = _blocks(double_layers, single_layers)
        if skipped == SkippedBlocks():
            return (model,)
        return (model.with_patch(WeakNegative(skipped, start_percent, end_percent)),)


def _led(model: Recipe, skipped: SkippedBlocks, scale: float, start: float, end: float, rescaling: float = 0) -> Recipe:
    if skipped == SkippedBlocks():
        return model
    return model.with_patch(SkipLayerGuidance(skipped, scale, start, end, rescaling))


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "SkipLayerGuidanceSD3": SkipLayerGuidanceSD3,
    "SkipLayerGuidanceDiT": SkipLayerGuidanceDiT,
    "SkipLayerGuidanceDiTSimple": SkipLayerGuidanceDiTSimple,
    "PerturbedAttentionGuidance": patch_node(
        "Lead away from the positive without the middle's self-attention.",
        PerturbedAttention,
        {"scale": number(3.0, 0.0, 100.0, round=0.01)},
        CATEGORY="model/patch/unet",
    ),
    "SelfAttentionGuidance": patch_node(
        "Lead away from the negative blurred where it attends to most.",
        SelfAttentionGuidance,
        {"scale": number(0.5, -2.0, 5.0), "blur_sigma": number(2.0, 0.0, 10.0, 0.1, advanced=True)},
        CATEGORY="experimental",
        EXPERIMENTAL=True,
    ),
    "NAGuidance": patch_node(
        "Lead the positive's attention away from the negative's.",
        NormalizedAttention,
        {
            "nag_scale": number(5.0, 0.0, 50.0, 0.1, tooltip="How far from the negative."),
            "nag_alpha": number(0.5, 0.0, 1.0, tooltip="How much of the result is taken; 0 takes nothing."),
            "nag_tau": number(1.5, 1.0, 10.0),
        },
        CATEGORY=GUIDANCE,
        DESCRIPTION="Leads attention itself away from the negative, so that distilled models heed one.",
        EXPERIMENTAL=True,
    ),
    "CFGOverride": patch_node(
        "Guide at another scale in a part of the sampling.",
        CfgOverride,
        {
            "cfg": number(1.0, 0.0, 100.0, 0.1, round=0.01),
            "start_percent": number(0.0, 0.0, 1.0, SHARE),
            "end_percent": number(1.0, 0.0, 1.0, SHARE),
        },
        CATEGORY="model/sampling/guiders",
        DESCRIPTION="Guides at another scale in a part of the sampling. "
        "Where several overlap, the one nearest to the sampler counts.",
    ),
    "TemporalScoreRescaling": patch_node(
        "Sharpen or smooth by scaling the score.",
        TemporalRescaling,
        {
            "tsr_k": number(
                0.95,
                0.01,
                100.0,
                0.001,
                display="number",
                advanced=True,
                tooltip="Below 1 there is more detail, above 1 less; 1 changes nothing.",
            ),
            "tsr_sigma": number(
                1.0, 0.01, 100.0, 0.001, display="number", advanced=True, tooltip="The larger, the earlier it acts."
            ),
        },
        RETURN_NAMES=PATCHED_MODEL,
        CATEGORY="model/patch/unet",
        DESCRIPTION="Temporal score rescaling (arXiv:2510.01184): "
        "scales the score as if the data were of another variance.",
    ),
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "SelfAttentionGuidance": "Self-Attention Guidance",
    "CFGOverride": "CFG Override",
    "NAGuidance": "Normalized Attention Guidance",
    "TemporalScoreRescaling": "TSR - Temporal Score Rescaling",
}
