"""The nodes that make GUIDER: a model, its conditionings by role, and how they are combined."""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose
from typing import Any

import torch

from serve_app.nodes.sampling.ksampler import CFG
from serve_app.recipe import Recipe
from serve_app.values import Cfg, Conditioning, DualCfg, Guider, PerpNeg

CATEGORY = "model/sampling/guiders"
NO_TEXT: Conditioning = [(torch.zeros(1, 0, 0), {})]


class BasicGuider:
    """One conditioning, without guidance."""

    RETURN_TYPES = ("GUIDER",)
    FUNCTION = "get_guider"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "conditioning": ("CONDITIONING",)}}

    def get_guider(self, model: Recipe, conditioning: Conditioning) -> tuple[Guider]:
        """Return the guider; at a scale of 1 there is nothing to guide away from."""
        return (Guider(model, {"positive": conditioning}, Cfg(1.0)),)


class CFGGuider:
    """Classifier-free guidance, as KSampler's."""

    RETURN_TYPES = ("GUIDER",)
    FUNCTION = "get_guider"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        conds = {"positive": ("CONDITIONING",), "negative": ("CONDITIONING",)}
        return {"required": {"model": ("MODEL",), **conds, "cfg": ("FLOAT", CFG)}}

    def get_guider(self, model: Recipe, positive: Conditioning, negative: Conditioning, cfg: float) -> tuple[Guider]:
        return (Guider(model, {"positive": positive, "negative": negative}, Cfg(cfg)),)


class DualCFGGuider:
    """Guidance in two stages: from the negative to one conditioning, from there to another."""

    RETURN_TYPES = ("GUIDER",)
    FUNCTION = "get_guider"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "cond1": ("CONDITIONING",),
                "cond2": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "cfg_conds": ("FLOAT", CFG),
                "cfg_cond2_negative": ("FLOAT", CFG),
                "style": (["regular", "nested"],),
            }
        }

    def get_guider(
        self,
        model: Recipe,
        cond1: Conditioning,
        cond2: Conditioning,
        negative: Conditioning,
        cfg_conds: float,
        cfg_cond2_negative: float,
        style: str,
    ) -> tuple[Guider]:
        """Return the guider with `cond2` as the middle branch."""
        rule = DualCfg(cfg_conds, cfg_cond2_negative, nested=style == "nested")
        return (Guider(model, {"positive": cond1, "middle": cond2, "negative": negative}, rule),)


class DualModelGuider:
    """Guidance away from what another model says of the negative."""

    RETURN_TYPES = ("GUIDER",)
    FUNCTION = "get_guider"
    CATEGORY = CATEGORY
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        model = "Model used for the positive (conditional) pass."
        other = "Model used for the negative (unconditional) pass. Use the same model for ordinary CFG."
        negative = (
            "Negative conditioning run on the negative model. "
            "Leave unconnected for a text-free (image-only) unconditional pass."
        )
        return {
            "required": {
                "model": ("MODEL", {"tooltip": model}),
                "positive": ("CONDITIONING",),
                "cfg": ("FLOAT", {"default": 4.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}),
            },
            "optional": {
                "model_negative": ("MODEL", {"tooltip": other}),
                "negative": ("CONDITIONING", {"tooltip": negative}),
            },
        }

    def get_guider(
        self,
        model: Recipe,
        positive: Conditioning,
        cfg: float,
        model_negative: Recipe | None = None,
        negative: Conditioning | None = None,
    ) -> tuple[Guider]:
        """Return the guider; a negative that is not given is a text of no tokens, which few families take."""
        conds = {"positive": positive}
        if negative is not None or not isclose(cfg, 1.0):
            conds["negative"] = NO_TEXT if negative is None else negative
        return (Guider(model, conds, Cfg(cfg), model_negative),)


class PerpNegGuider:
    """Guidance away from that part of the negative which does not concern the positive."""

    RETURN_TYPES = ("GUIDER",)
    FUNCTION = "get_guider"
    CATEGORY = "experimental"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "empty_conditioning": ("CONDITIONING",),
                "cfg": ("FLOAT", CFG),
                "neg_scale": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 100.0, "step": 0.01}),
            }
        }

    def get_guider(
        self,
        model: Recipe,
        positive: Conditioning,
        negative: Conditioning,
        empty_conditioning: Conditioning,
        cfg: float,
        neg_scale: float,
    ) -> tuple[Guider]:
        conds = {"positive": positive, "negative": negative, "empty": empty_conditioning}
        return (Guider(model, conds, PerpNeg(cfg, neg_scale)),)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "BasicGuider": BasicGuider,
    "CFGGuider": CFGGuider,
    "DualCFGGuider": DualCFGGuider,
    "DualModelGuider": DualModelGuider,
    "PerpNegGuider": PerpNegGuider,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "BasicGuider": "Basic Guider",
    "CFGGuider": "CFG Guider",
    "DualCFGGuider": "Dual CFG Guider",
    "DualModelGuider": "Dual Model CFG Guider",
    "PerpNegGuider": "Perp-Neg Guider",
}
