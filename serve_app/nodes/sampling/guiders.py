"""The nodes that make GUIDER: a model, its conditionings by role, and how they are combined."""

from __future__ import annotations

from math import isclose
from typing import Annotated

import torch

from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Choice, Float, InputType
from serve_app.nodes.sampling.ksampler import CfgScale
from serve_app.nodes.sockets import CONDITIONING, GUIDER, MODEL
from serve_app.recipe.recipe import Recipe
from serve_app.values import Cfg, Conditioning, DualCfg, Guider, PartsCfg, PerpNeg

CATEGORY = "model/sampling/guiders"
NO_TEXT: Conditioning = [(torch.zeros(1, 0, 0), {})]


@node("BasicGuider", "Basic Guider", category=CATEGORY, function="get_guider")
def basic_guider(model: MODEL, conditioning: CONDITIONING) -> GUIDER:
    """One conditioning, without guidance.

    Return the guider; at a scale of 1 there is nothing to guide away from.
    """
    return Guider(model, {"positive": conditioning}, Cfg(1.0))


@node("CFGGuider", "CFG Guider", category=CATEGORY, function="get_guider")
def cfg_guider(model: MODEL, positive: CONDITIONING, negative: CONDITIONING, cfg: CfgScale) -> GUIDER:
    """Classifier-free guidance, as KSampler's."""
    return Guider(model, {"positive": positive, "negative": negative}, Cfg(cfg))


@node("DualCFGGuider", "Dual CFG Guider", category=CATEGORY, function="get_guider")
def dual_cfg_guider(
    model: MODEL,
    cond1: CONDITIONING,
    cond2: CONDITIONING,
    negative: CONDITIONING,
    cfg_conds: CfgScale,
    cfg_cond2_negative: CfgScale,
    style: Annotated[str, Choice(["regular", "nested"])],
) -> GUIDER:
    """Guidance in two stages: from the negative to one conditioning, from there to another.

    Return the guider with `cond2` as the middle branch.
    """
    rule = DualCfg(cfg_conds, cfg_cond2_negative, nested=style == "nested")
    return Guider(model, {"positive": cond1, "middle": cond2, "negative": negative}, rule)


@node(
    "LTXVDualCFGGuider",
    "LTXV Dual CFG Guider",
    category=CATEGORY,
    description="Separate CFG scales for the video and audio modalities of a packed LTXV-AV latent.",
)
def ltxv_dual_cfg_guider(
    model: MODEL,
    positive: CONDITIONING,
    negative: CONDITIONING,
    video_cfg: Annotated[float, Float(3.0, min=0.0, max=100.0, step=0.1, round=0.01)],
    audio_cfg: Annotated[float, Float(7.0, min=0.0, max=100.0, step=0.1, round=0.01)],
) -> GUIDER:
    """Guidance of a video and of its sound by scales of their own. A video alone is guided by its scale."""
    return Guider(model, {"positive": positive, "negative": negative}, PartsCfg(video_cfg, audio_cfg))


@node("DualModelGuider", "Dual Model CFG Guider", category=CATEGORY, function="get_guider", experimental=True)
def dual_model_guider(
    model: Annotated[Recipe, InputType("MODEL", {"tooltip": "Model used for the positive (conditional) pass."})],
    positive: CONDITIONING,
    cfg: Annotated[float, Float(4.0, min=0.0, max=100.0, step=0.1, round=0.01)],
    model_negative: Annotated[
        Recipe,
        InputType(
            "MODEL",
            {"tooltip": "Model used for the negative (unconditional) pass. Use the same model for ordinary CFG."},
        ),
    ]
    | None = None,
    negative: Annotated[
        Conditioning,
        InputType(
            "CONDITIONING",
            {
                "tooltip": "Negative conditioning run on the negative model. "
                "Leave unconnected for a text-free (image-only) unconditional pass."
            },
        ),
    ]
    | None = None,
) -> GUIDER:
    """Guidance away from what another model says of the negative.

    Return the guider; a negative that is not given is a text of no tokens, which few families take.
    """
    conds = {"positive": positive}
    if negative is not None or not isclose(cfg, 1.0):
        conds["negative"] = NO_TEXT if negative is None else negative
    return Guider(model, conds, Cfg(cfg), model_negative)


@node("PerpNegGuider", "Perp-Neg Guider", category="experimental", function="get_guider", experimental=True)
def perp_neg_guider(
    model: MODEL,
    positive: CONDITIONING,
    negative: CONDITIONING,
    empty_conditioning: CONDITIONING,
    cfg: CfgScale,
    neg_scale: Annotated[float, Float(1.0, min=0.0, max=100.0, step=0.01)],
) -> GUIDER:
    """Guidance away from that part of the negative which does not concern the positive."""
    conds = {"positive": positive, "negative": negative, "empty": empty_conditioning}
    return Guider(model, conds, PerpNeg(cfg, neg_scale))
