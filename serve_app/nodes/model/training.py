"""The nodes that say what a diffusion model was trained to predict, and on which noise levels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_app.errors import NodeError
from serve_app.nodes.latent.latents import MAX_RESOLUTION
from serve_app.recipe import ContinuousEdm, ContinuousV, Discrete, Flow, FluxFlow, Recipe, Training
from serve_app.sampling.denoiser import trained

_OTHER_FAMILIES = {
    "cosmos_rflow": "Cosmos models, which are not supported",
    "edm_playground_v2.5": "Playground v2.5, whose latents are not supported",
}


def _level(default: float) -> tuple[str, dict[str, Any]]:
    return ("FLOAT", {"default": default, "min": 0.0, "max": 1000.0, "step": 0.001, "round": False})


def _shift(default: float) -> tuple[str, dict[str, Any]]:
    return ("FLOAT", {"default": default, "min": 0.0, "max": 100.0, "step": 0.01})


def _patched(model: Recipe, training: Training) -> tuple[Recipe]:
    # Levels that are none are refused here, where the node is known, rather than when the model is loaded.
    trained(training)
    return (model.with_patch(training),)


class ModelSamplingDiscrete:
    """Training on a table of noise levels."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "model/patch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "sampling": (["eps", "v_prediction", "lcm", "x0", "img_to_img"],),
                "zsnr": ("BOOLEAN", {"default": False}),
            }
        }

    def patch(self, model: Recipe, sampling: str, zsnr: bool) -> tuple[Recipe]:
        """Return the model's recipe with the training."""
        return _patched(model, Discrete(sampling, zsnr))


class ModelSamplingContinuousEDM:
    """Training on any noise level between two, of which the network is told the logarithm."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "model/patch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "sampling": (["v_prediction", "edm", "edm_playground_v2.5", "eps", "cosmos_rflow"],),
                "sigma_max": _level(120.0),
                "sigma_min": _level(0.002),
            }
        }

    def patch(self, model: Recipe, sampling: str, sigma_max: float, sigma_min: float) -> tuple[Recipe]:
        """Return the model's recipe with the training. Errors: NodeError for one of a family that is not supported."""
        if (family := _OTHER_FAMILIES.get(sampling)) is not None:
            raise NodeError(f"sampling '{sampling}' is for {family}; supported are v_prediction, edm, eps")
        return _patched(model, ContinuousEdm(sampling, sigma_max, sigma_min))


class ModelSamplingContinuousV:
    """Training on any noise level between two, of which the network is told an angle."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "model/patch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "sampling": (["v_prediction"],),
                "sigma_max": _level(500.0),
                "sigma_min": _level(0.03),
            }
        }

    def patch(self, model: Recipe, sampling: str, sigma_max: float, sigma_min: float) -> tuple[Recipe]:
        """Return the model's recipe with the training."""
        return _patched(model, ContinuousV(sigma_max, sigma_min))


class ModelSamplingSD3:
    """Training on a flow, of which the network is told thousandths."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "model/patch/stable diffusion"
    default_shift, multiplier = 3.0, 1000.0

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "shift": _shift(cls.default_shift)}}

    def patch(self, model: Recipe, shift: float) -> tuple[Recipe]:
        """Return the model's recipe with the training. Errors: NodeError for a shift of 0, which leaves no levels."""
        return _patched(model, Flow(shift, self.multiplier))


class ModelSamplingAuraFlow(ModelSamplingSD3):
    """Training on a flow, of which the network is told the level itself."""

    CATEGORY = "model/patch"
    default_shift, multiplier = 1.73, 1.0


class ModelSamplingFlux:
    """Training on a flow that is shifted the further, the larger the image."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "model/patch/flux"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = ("INT", {"default": 1024, "min": 16, "max": MAX_RESOLUTION, "step": 8})
        shifts = {"max_shift": _shift(1.15), "base_shift": _shift(0.5)}
        return {"required": {"model": ("MODEL",), **shifts, "width": side, "height": side}}

    def patch(self, model: Recipe, max_shift: float, base_shift: float, width: int, height: int) -> tuple[Recipe]:
        """Return the model's recipe with the training: its mu is a line through both shifts' numbers of tokens."""
        slope = (max_shift - base_shift) / (_MAX_TOKENS - _BASE_TOKENS)
        mu = (width * height / _PIXELS_A_TOKEN) * slope + (base_shift - slope * _BASE_TOKENS)
        return _patched(model, FluxFlow(mu))


_BASE_TOKENS, _MAX_TOKENS = 256, 4096
"""Of images of 256×256 and 1024×1024 pixels, on which FLUX.1 was trained with base_shift and max_shift."""
_PIXELS_A_TOKEN = 16 * 16


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "ModelSamplingDiscrete": ModelSamplingDiscrete,
    "ModelSamplingContinuousEDM": ModelSamplingContinuousEDM,
    "ModelSamplingContinuousV": ModelSamplingContinuousV,
    "ModelSamplingSD3": ModelSamplingSD3,
    "ModelSamplingAuraFlow": ModelSamplingAuraFlow,
    "ModelSamplingFlux": ModelSamplingFlux,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {}
