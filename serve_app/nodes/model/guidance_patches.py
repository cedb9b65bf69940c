"""The nodes that patch a MODEL's guidance: how branches are combined, and the scale by noise level."""

from __future__ import annotations

import re
from typing import Annotated, TypeAlias

from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Float, Text
from serve_app.nodes.model.patches import PATCHED_MODEL
from serve_app.nodes.sockets import MODEL
from serve_app.recipe.guidance import (
    CfgOverride,
    NormalizedAttention,
    PerturbedAttention,
    SelfAttentionGuidance,
    SkipLayerGuidance,
    SkippedBlocks,
    TemporalRescaling,
    WeakNegative,
)
from serve_app.recipe.recipe import Recipe

GUIDANCE = "advanced/guidance"


def _blocks(doubles: str, singles: str = "") -> SkippedBlocks:
    """Return the blocks whose numbers stand in texts, whatever separates them."""
    return SkippedBlocks(*(tuple(map(int, re.findall(r"\d+", text))) for text in (doubles, singles)))


Layers: TypeAlias = Annotated[str, Text("7, 8, 9", multiline=False, advanced=True)]
Scale: TypeAlias = Annotated[float, Float(3.0, min=0.0, max=10.0, step=0.1)]
Start: TypeAlias = Annotated[float, Float(0.01, min=0.0, max=1.0, step=0.001, advanced=True)]
End: TypeAlias = Annotated[float, Float(0.15, min=0.0, max=1.0, step=0.001, advanced=True)]


@node(
    "SkipLayerGuidanceSD3",
    category=GUIDANCE,
    function="skip_guidance_sd3",
    description="Leads away from what a diffusion transformer without some of its layers makes of the positive.",
    experimental=True,
)
def skip_layer_guidance_sd3(
    model: MODEL, layers: Layers, scale: Scale, start_percent: Start, end_percent: End
) -> MODEL:
    """Lead away from the positive without some blocks, for Stable Diffusion 3.

    Return the model with the patch, or as it is where no layer is named.
    """
    return _led(model, _blocks(layers), scale, start_percent, end_percent)


@node(
    "SkipLayerGuidanceDiT",
    category=GUIDANCE,
    function="skip_guidance",
    description="Leads away from what a diffusion transformer without some of its layers makes of the positive.",
    experimental=True,
)
def skip_layer_guidance_dit(
    model: MODEL,
    double_layers: Layers,
    single_layers: Layers,
    scale: Scale,
    start_percent: Start,
    end_percent: End,
    rescaling_scale: Annotated[float, Float(0.0, min=0.0, max=10.0, step=0.01)],
) -> MODEL:
    """Lead away from the positive without some blocks.

    Return the model with the patch, or as it is where no layer is named.
    """
    skipped = _blocks(double_layers, single_layers)
    return _led(model, skipped, scale, start_percent, end_percent, rescaling_scale)


@node(
    "SkipLayerGuidanceDiTSimple",
    category=GUIDANCE,
    function="skip_guidance",
    description="Has a diffusion transformer make the negative without some of its layers, at no further cost.",
    experimental=True,
)
def skip_layer_guidance_dit_simple(
    model: MODEL,
    double_layers: Layers,
    single_layers: Layers,
    start_percent: Annotated[float, Float(0.0, min=0.0, max=1.0, step=0.001, advanced=True)],
    end_percent: Annotated[float, Float(1.0, min=0.0, max=1.0, step=0.001, advanced=True)],
) -> MODEL:
    """Make the negative without some blocks.

    Return the model with the patch, or as it is where no layer is named.
    """
    skipped = _blocks(double_layers, single_layers)
    if skipped == SkippedBlocks():
        return model
    return model.with_patch(WeakNegative(skipped, start_percent, end_percent))


def _led(model: Recipe, skipped: SkippedBlocks, scale: float, start: float, end: float, rescaling: float = 0) -> Recipe:
    if skipped == SkippedBlocks():
        return model
    return model.with_patch(SkipLayerGuidance(skipped, scale, start, end, rescaling))


@node("PerturbedAttentionGuidance", category="model/patch/unet", function="patch")
def perturbed_attention_guidance(
    model: MODEL, scale: Annotated[float, Float(3.0, min=0.0, max=100.0, step=0.01, round=0.01)]
) -> MODEL:
    """Lead away from the positive without the middle's self-attention."""
    return model.with_patch(PerturbedAttention(scale))


@node("SelfAttentionGuidance", "Self-Attention Guidance", category="experimental", function="patch", experimental=True)
def self_attention_guidance(
    model: MODEL,
    scale: Annotated[float, Float(0.5, min=-2.0, max=5.0, step=0.01)],
    blur_sigma: Annotated[float, Float(2.0, min=0.0, max=10.0, step=0.1, advanced=True)],
) -> MODEL:
    """Lead away from the negative blurred where it attends to most."""
    return model.with_patch(SelfAttentionGuidance(scale, blur_sigma))


@node(
    "NAGuidance",
    "Normalized Attention Guidance",
    category=GUIDANCE,
    function="patch",
    description="Leads attention itself away from the negative, so that distilled models heed one.",
    experimental=True,
)
def na_guidance(
    model: MODEL,
    nag_scale: Annotated[float, Float(5.0, min=0.0, max=50.0, step=0.1, tooltip="How far from the negative.")],
    nag_alpha: Annotated[
        float, Float(0.5, min=0.0, max=1.0, step=0.01, tooltip="How much of the result is taken; 0 takes nothing.")
    ],
    nag_tau: Annotated[float, Float(1.5, min=1.0, max=10.0, step=0.01)],
) -> MODEL:
    """Lead the positive's attention away from the negative's."""
    return model.with_patch(NormalizedAttention(nag_scale, nag_alpha, nag_tau))


@node(
    "CFGOverride",
    "CFG Override",
    category="model/sampling/guiders",
    function="patch",
    description=(
        "Guides at another scale in a part of the sampling. Where several overlap, the one nearest to "
        "the sampler counts."
    ),
)
def cfg_override(
    model: MODEL,
    cfg: Annotated[float, Float(1.0, min=0.0, max=100.0, step=0.1, round=0.01)],
    start_percent: Annotated[float, Float(0.0, min=0.0, max=1.0, step=0.001)],
    end_percent: Annotated[float, Float(1.0, min=0.0, max=1.0, step=0.001)],
) -> MODEL:
    """Guide at another scale in a part of the sampling."""
    return model.with_patch(CfgOverride(cfg, start_percent, end_percent))


@node(
    "TemporalScoreRescaling",
    "TSR - Temporal Score Rescaling",
    category="model/patch/unet",
    function="patch",
    return_names=PATCHED_MODEL,
    description=(
        "Temporal score rescaling (arXiv:2510.01184): scales the score as if the data were of another variance."
    ),
)
def temporal_score_rescaling(
    model: MODEL,
    tsr_k: Annotated[
        float,
        Float(
            0.95,
            min=0.01,
            max=100.0,
            step=0.001,
            display="number",
            advanced=True,
            tooltip="Below 1 there is more detail, above 1 less; 1 changes nothing.",
        ),
    ],
    tsr_sigma: Annotated[
        float,
        Float(
            1.0,
            min=0.01,
            max=100.0,
            step=0.001,
            display="number",
            advanced=True,
            tooltip="The larger, the earlier it acts.",
        ),
    ],
) -> MODEL:
    """Sharpen or smooth by scaling the score."""
    return model.with_patch(TemporalRescaling(tsr_k, tsr_sigma))
