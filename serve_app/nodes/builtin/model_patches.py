"""The nodes that put a patch on a MODEL which changes guidance, inpainting or features, but no weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_app.sampling.latent_operations import LatentOperation
from serve_app.values import (
    AdaptiveProjection,
    CfgNorm,
    CfgZeroStar,
    DifferentialDiffusion,
    EpsilonScaling,
    FreeU,
    FrequencyScaling,
    Mahiro,
    OperatedGuidance,
    Recipe,
    RescaleCfg,
    TangentialDamping,
)


def _number(default: float, least: float, most: float, step: float = 0.01) -> tuple[str, dict[str, Any]]:
    return ("FLOAT", {"default": default, "min": least, "max": most, "step": step})


def _with_model(**numbers: Any) -> dict[str, Any]:
    return {"required": {"model": ("MODEL",), **numbers}}


class RescaleCFG:
    """Keep strong guidance from overexposing."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "advanced/model"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return _with_model(multiplier=_number(0.7, 0.0, 1.0))

    def patch(self, model: Recipe, multiplier: float) -> tuple[Recipe]:
        """Return the recipe with the patch."""
        return (model.with_patch(RescaleCfg(multiplier)),)


class CFGZeroStar:
    """Guide away from a negative that is scaled to the positive."""

    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("patched_model",)
    FUNCTION = "patch"
    CATEGORY = "advanced/guidance"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return _with_model()

    def patch(self, model: Recipe) -> tuple[Recipe]:
        """Return the recipe with the patch."""
        return (model.with_patch(CfgZeroStar()),)


class CFGNorm:
    """Keep guidance from making the latents longer than the positive's."""

    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("patched_model",)
    FUNCTION = "patch"
    CATEGORY = "advanced/guidance"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return _with_model(strength=_number(1.0, 0.0, 100.0))

    def patch(self, model: Recipe, strength: float) -> tuple[Recipe]:
        """Return the recipe with the patch."""
        return (model.with_patch(CfgNorm(strength)),)


class TCFG:
    """Align the negative with the positive before guidance."""

    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("patched_model",)
    FUNCTION = "patch"
    CATEGORY = "advanced/guidance"
    DESCRIPTION = "Tangential damping (arXiv:2503.18137): of the negative, only what runs along the positive is kept."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return _with_model()

    def patch(self, model: Recipe) -> tuple[Recipe]:
        """Return the recipe with the patch."""
        return (model.with_patch(TangentialDamping()),)


class APG:
    """Weigh guidance by whether it runs along the positive."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "sampling/custom_sampling"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        eta = _number(1.0, -10.0, 10.0)
        eta[1]["tooltip"] = "How much of the guidance that runs along the positive is kept; 1 keeps it as it is."
        threshold = _number(5.0, 0.0, 50.0, 0.1)
        threshold[1]["tooltip"] = "The most that guidance may measure; 0 sets no limit."
        momentum = _number(0.0, -5.0, 1.0)
        momentum[1]["tooltip"] = "How much of the guidance before runs on; 0 none of it."
        return _with_model(eta=eta, norm_threshold=threshold, momentum=momentum)

    def patch(self, model: Recipe, eta: float, norm_threshold: float, momentum: float) -> tuple[Recipe]:
        """Return the recipe with the patch."""
        return (model.with_patch(AdaptiveProjection(eta, norm_threshold, momentum)),)


class FreSca:
    """Scale low and high frequencies of guidance."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "_for_testing"
    DESCRIPTION = "Scales what guidance adds by its frequency."
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        low, high = _number(1.0, 0, 10), _number(1.25, 0, 10)
        low[1]["tooltip"] = "What low frequencies are multiplied by."
        high[1]["tooltip"] = "What high frequencies are multiplied by."
        tooltip = "How many frequencies about zero are low."
        cutoff = ("INT", {"default": 20, "min": 1, "max": 10000, "step": 1, "tooltip": tooltip})
        return _with_model(scale_low=low, scale_high=high, freq_cutoff=cutoff)

    def patch(self, model: Recipe, scale_low: float, scale_high: float, freq_cutoff: int) -> tuple[Recipe]:
        """Return the recipe with the patch."""
        return (model.with_patch(FrequencyScaling(scale_low, scale_high, freq_cutoff)),)


class MahiroGuidance:
    """Guide towards the positive's direction rather than away from the negative."""

    RETURN_TYPES = ("MODEL",)
    RETURN_NAMES = ("patched_model",)
    FUNCTION = "patch"
    CATEGORY = "_for_testing"
    DESCRIPTION = "Follows the positive's own direction the more, the less the negative resembles the guided image."
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return _with_model()

    def patch(self, model: Recipe) -> tuple[Recipe]:
        """Return the recipe with the patch."""
        return (model.with_patch(Mahiro()),)


class EpsilonScalingPatch:
    """Scale the predicted noise."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "model_patches/unet"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        factor = _number(1.005, 0.5, 1.5, 0.001)
        factor[1]["display"] = "number"
        return _with_model(scaling_factor=factor)

    def patch(self, model: Recipe, scaling_factor: float) -> tuple[Recipe]:
        """Return the recipe with the patch."""
        return (model.with_patch(EpsilonScaling(scaling_factor)),)


class DifferentialDiffusionPatch:
    """Read a mask as how early each place is let go."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "_for_testing"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",)}, "optional": {"strength": _number(1.0, 0.0, 1.0)}}

    def patch(self, model: Recipe, strength: float = 1.0) -> tuple[Recipe]:
        """Return the recipe with the patch."""
        return (model.with_patch(DifferentialDiffusion(strength)),)


class FreeUFirst:
    """Amplify coarse features and damp what skips them."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "model_patches/unet"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        defaults = {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2}
        return _with_model(**{name: _number(default, 0.0, 10.0) for name, default in defaults.items()})

    def patch(self, model: Recipe, b1: float, b2: float, s1: float, s2: float) -> tuple[Recipe]:
        """Return the recipe with the patch."""
        return (model.with_patch(FreeU(b1, b2, s1, s2)),)


class FreeUSecond:
    """Amplify coarse features where they are large and damp what skips them."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "model_patches/unet"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        defaults = {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}
        return _with_model(**{name: _number(default, 0.0, 10.0) for name, default in defaults.items()})

    def patch(self, model: Recipe, b1: float, b2: float, s1: float, s2: float) -> tuple[Recipe]:
        """Return the recipe with the patch."""
        return (model.with_patch(FreeU(b1, b2, s1, s2, adaptive=True)),)


class LatentApplyOperationCFG:
    """Put what guidance adds through an operation on latents."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "latent/advanced/operations"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return _with_model(operation=("LATENT_OPERATION",))

    def patch(self, model: Recipe, operation: LatentOperation) -> tuple[Recipe]:
        """Return the recipe with the patch."""
        return (model.with_patch(OperatedGuidance(operation)),)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "RescaleCFG": RescaleCFG,
    "CFGZeroStar": CFGZeroStar,
    "CFGNorm": CFGNorm,
    "TCFG": TCFG,
    "APG": APG,
    "FreSca": FreSca,
    "Mahiro": MahiroGuidance,
    "Epsilon Scaling": EpsilonScalingPatch,
    "DifferentialDiffusion": DifferentialDiffusionPatch,
    "LatentApplyOperationCFG": LatentApplyOperationCFG,
    "FreeU": FreeUFirst,
    "FreeU_V2": FreeUSecond,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "TCFG": "Tangential Damping CFG",
    "APG": "Adaptive Projected Guidance",
    "FreSca": "FreSca",
    "Mahiro": "Mahiro is so cute that she deserves a better guidance function!! (。・ω・。)",
    "DifferentialDiffusion": "Differential Diffusion",
}
