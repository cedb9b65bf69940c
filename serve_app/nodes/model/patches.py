"""The nodes that put a patch on a MODEL which changes guidance, inpainting or features, but no weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from types import MappingProxyType
from typing import Any

from serve_app.recipe import (
    DEFAULT_DTYPE,
    AdaptiveProjection,
    CfgNorm,
    CfgZeroStar,
    ComputedIn,
    DifferentialDiffusion,
    EpsilonScaling,
    FreeU,
    FrequencyScaling,
    Mahiro,
    NoiseNorm,
    OperatedGuidance,
    Patch,
    Recipe,
    RenormCfg,
    RescaleCfg,
    TangentialDamping,
)


def patch_node(
    doc: str,
    make: Callable[..., Patch],
    inputs: Mapping[str, Any],
    optional: Mapping[str, Any] = MappingProxyType({}),
    **attributes: Any,
) -> type:
    """Return a class whose node puts a patch on a MODEL.

    make: takes the inputs in their order, and those optional ones that are given by name. attributes: the class's own.
    """

    class PatchNode:
        __doc__ = doc
        RETURN_TYPES = ("MODEL",)
        FUNCTION = "patch"

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            required = {"model": ("MODEL",), **deepcopy(inputs)}
            return {"required": required, "optional": deepcopy(dict(optional))} if optional else {"required": required}

        def patch(self, model: Recipe, **given: Any) -> tuple[Recipe]:
            more = {name: given[name] for name in optional if name in given}
            return (model.with_patch(make(*(given[name] for name in inputs), **more)),)

    for name, value in attributes.items():
        setattr(PatchNode, name, value)
    return PatchNode


def number(default: float, least: float, most: float, step: float = 0.01, **more: Any) -> tuple[str, dict[str, Any]]:
    return ("FLOAT", {"default": default, "min": least, "max": most, "step": step, **more})


def _cfg_norm(strength: float, pre_cfg: bool = False) -> Patch:
    return NoiseNorm(strength) if pre_cfg else CfgNorm(strength)


def _free_u(b1: float, b2: float) -> dict[str, Any]:
    return {name: number(default, 0.0, 10.0) for name, default in {"b1": b1, "b2": b2, "s1": 0.9, "s2": 0.2}.items()}


class DifferentialDiffusionPatch:
    """Read a mask as how early each place is let go."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "experimental"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",)}, "optional": {"strength": number(1.0, 0.0, 1.0)}}

    def patch(self, model: Recipe, strength: float = 1.0) -> tuple[Recipe]:
        return (model.with_patch(DifferentialDiffusion(strength)),)


class AttentionBackend:
    """Which attention a model runs with: torch's whatever is asked, as in a ComfyUI that has no other."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "model/patch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "attention": (["pytorch attention", "comfy kitchen attention"],)}}

    def patch(self, model: Recipe, attention: str) -> tuple[Recipe]:
        """Return the recipe as it is."""
        return (model,)


PATCHED_MODEL = ("patched_model",)

NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "RescaleCFG": patch_node(
        "Keep strong guidance from overexposing.",
        RescaleCfg,
        {"multiplier": number(0.7, 0.0, 1.0)},
        CATEGORY="model/patch",
    ),
    "CFGZeroStar": patch_node(
        "Guide away from a negative that is scaled to the positive.",
        CfgZeroStar,
        {},
        RETURN_NAMES=PATCHED_MODEL,
        CATEGORY="advanced/guidance",
    ),
    "CFGNorm": patch_node(
        "Keep guidance from making the latents longer than the positive's.",
        _cfg_norm,
        {"strength": number(1.0, 0.0, 100.0)},
        {"pre_cfg": ("BOOLEAN", {"default": False, "tooltip": "Scale the guided noise to the positive's, up too."})},
        RETURN_NAMES=PATCHED_MODEL,
        CATEGORY="advanced/guidance",
        EXPERIMENTAL=True,
    ),
    "TCFG": patch_node(
        "Align the negative with the positive before guidance.",
        TangentialDamping,
        {},
        RETURN_NAMES=PATCHED_MODEL,
        CATEGORY="advanced/guidance",
        DESCRIPTION="Tangential damping (arXiv:2503.18137): "
        "of the negative, only what runs along the positive is kept.",
    ),
    "APG": patch_node(
        "Weigh guidance by whether it runs along the positive.",
        AdaptiveProjection,
        {
            "eta": number(
                1.0,
                -10.0,
                10.0,
                tooltip="How much of the guidance that runs along the positive is kept; 1 keeps it as it is.",
            ),
            "norm_threshold": number(
                5.0, 0.0, 50.0, 0.1, tooltip="The most that guidance may measure; 0 sets no limit."
            ),
            "momentum": number(0.0, -5.0, 1.0, tooltip="How much of the guidance before runs on; 0 none of it."),
        },
        CATEGORY="model/sampling/custom",
    ),
    "FreSca": patch_node(
        "Scale low and high frequencies of guidance.",
        FrequencyScaling,
        {
            "scale_low": number(1.0, 0, 10, tooltip="What low frequencies are multiplied by."),
            "scale_high": number(1.25, 0, 10, tooltip="What high frequencies are multiplied by."),
            "freq_cutoff": (
                "INT",
                {
                    "default": 20,
                    "min": 1,
                    "max": 10000,
                    "step": 1,
                    "tooltip": "How many frequencies about zero are low.",
                },
            ),
        },
        CATEGORY="experimental",
        DESCRIPTION="Scales what guidance adds by its frequency.",
        EXPERIMENTAL=True,
    ),
    "RenormCFG": patch_node(
        "Guide at low noise levels, and limit what guidance gives in length.",
        RenormCfg,
        {"cfg_trunc": number(100, 0.0, 100.0, advanced=True), "renorm_cfg": number(1.0, 0.0, 100.0, advanced=True)},
        CATEGORY="model/patch",
    ),
    "Mahiro": patch_node(
        "Guide towards the positive's direction rather than away from the negative.",
        Mahiro,
        {},
        RETURN_NAMES=PATCHED_MODEL,
        CATEGORY="experimental",
        DESCRIPTION="Follows the positive's own direction the more, the less the negative resembles the guided image.",
        EXPERIMENTAL=True,
    ),
    "Epsilon Scaling": patch_node(
        "Scale the predicted noise.",
        EpsilonScaling,
        {"scaling_factor": number(1.005, 0.5, 1.5, 0.001, display="number")},
        CATEGORY="model/patch/unet",
    ),
    "DifferentialDiffusion": DifferentialDiffusionPatch,
    "ModelComputeDtype": patch_node(
        "Hold and work with a model's weights in a dtype of its own.",
        ComputedIn,
        {"dtype": ([DEFAULT_DTYPE, "fp32", "fp16", "bf16"], {"advanced": True})},
        CATEGORY="advanced/debug",
    ),
    "ModelAttentionBackend": AttentionBackend,
    "LatentApplyOperationCFG": patch_node(
        "Put what guidance adds through an operation on latents.",
        OperatedGuidance,
        {"operation": ("LATENT_OPERATION",)},
        CATEGORY="model/latent/advanced/operations",
        EXPERIMENTAL=True,
    ),
    "FreeU": patch_node(
        "Amplify coarse features and damp what skips them.",
        FreeU,
        _free_u(b1=1.1, b2=1.2),
        CATEGORY="model/patch/unet",
    ),
    "FreeU_V2": patch_node(
        "Amplify coarse features where they are large and damp what skips them.",
        partial(FreeU, adaptive=True),
        _free_u(b1=1.3, b2=1.4),
        CATEGORY="model/patch/unet",
    ),
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "DifferentialDiffusion": "Differential Diffusion",
    "Mahiro": "Positive-Biased Guidance",
    "APG": "Adaptive Projected Guidance",
    "TCFG": "Tangential Damping CFG",
}
