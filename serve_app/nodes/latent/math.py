"""The nodes that calculate with latents, and the operations that they and guidance can apply.

A second latent is cut and resized to the first's size, and its batch repeated or cut to the first's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from serve_app.nodes.image.match_size import fit_batch, fit_latents
from serve_app.sampling.latents.latent_operations import Blending, LatentOperation, ReinhardTonemap, Sharpening
from serve_app.values import Latent


def _pair(samples1: Latent, samples2: Latent) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = samples1["samples"], samples2["samples"]
    if first.shape[1:] != second.shape[1:]:
        second = fit_latents(second, first.shape[-1], first.shape[-2], "bilinear", "center")
    return first, fit_batch(second, first.shape[0])


def _lengths(latents: torch.Tensor) -> torch.Tensor:
    """Return the channel vectors' lengths, to divide by."""
    lengths: torch.Tensor = torch.linalg.vector_norm(latents, dim=1, keepdim=True)
    # A batch as long as there are channels is divided crosswise in ComfyUI: channel i by the lengths of image i.
    return lengths.transpose(0, 1) if latents.shape[0] == latents.shape[1] else lengths


class LatentAdd:
    """The sum of two latents."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "op"
    CATEGORY = "model/latent/advanced"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"samples1": ("LATENT",), "samples2": ("LATENT",)}}

    def op(self, samples1: Latent, samples2: Latent) -> tuple[Latent]:
        """Return samples1 + samples2."""
        first, second = _pair(samples1, samples2)
        return ({**samples1, "samples": first + second},)


class LatentSubtract:
    """The difference of two latents."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "op"
    CATEGORY = "model/latent/advanced"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"samples1": ("LATENT",), "samples2": ("LATENT",)}}

    def op(self, samples1: Latent, samples2: Latent) -> tuple[Latent]:
        """Return samples1 - samples2."""
        first, second = _pair(samples1, samples2)
        return ({**samples1, "samples": first - second},)


class LatentMultiply:
    """Latents times a number."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "op"
    CATEGORY = "model/latent/advanced"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "samples": ("LATENT",),
                "multiplier": ("FLOAT", {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.01}),
            }
        }

    def op(self, samples: Latent, multiplier: float) -> tuple[Latent]:
        """Return samples × multiplier."""
        return ({**samples, "samples": samples["samples"] * multiplier},)


class LatentInterpolate:
    """A latent between two: directions and lengths of the channel vectors are mixed apart."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "op"
    CATEGORY = "model/latent/advanced"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "samples1": ("LATENT",),
                "samples2": ("LATENT",),
                "ratio": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            }
        }

    def op(self, samples1: Latent, samples2: Latent, ratio: float) -> tuple[Latent]:
        """Return samples1 at a ratio of 1, samples2 at 0."""
        first, second = _pair(samples1, samples2)
        lengths1, lengths2 = _lengths(first), _lengths(second)
        # A vector of length 0 has no direction: it counts as 0.
        mixed = torch.nan_to_num(first / lengths1) * ratio + torch.nan_to_num(second / lengths2) * (1.0 - ratio)
        direction = torch.nan_to_num(mixed / _lengths(mixed))
        return ({**samples1, "samples": direction * (lengths1 * ratio + lengths2 * (1.0 - ratio))},)


class LatentBlend:
    """A weighted mean of two latents."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "blend"
    CATEGORY = "experimental"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "samples1": ("LATENT",),
                "samples2": ("LATENT",),
                "blend_factor": ("FLOAT", {"default": 0.5, "min": 0, "max": 1, "step": 0.01}),
            }
        }

    def blend(self, samples1: Latent, samples2: Latent, blend_factor: float) -> tuple[Latent]:
        """Return samples1 at a factor of 1, samples2 at 0; either may be a single latent for all of the other's."""
        first, second = samples1["samples"], samples2["samples"]
        if first.shape != second.shape:
            second = fit_latents(second, first.shape[3], first.shape[2], "bicubic", "center")
        return ({**samples1, "samples": first * blend_factor + second * (1 - blend_factor)},)


class LatentApplyOperation:
    """Latents after an operation."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "op"
    CATEGORY = "model/latent/advanced/operations"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"samples": ("LATENT",), "operation": ("LATENT_OPERATION",)}}

    def op(self, samples: Latent, operation: LatentOperation) -> tuple[Latent]:
        """Return what the operation makes of the latents."""
        return ({**samples, "samples": operation(latent=samples["samples"])},)


class LatentOperationBlend:
    """The operation that moves latents towards others."""

    RETURN_TYPES = ("LATENT_OPERATION",)
    FUNCTION = "op"
    CATEGORY = "model/latent/advanced/operations"
    DESCRIPTION = "Blends latents with a reference, which is stretched to their size."
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        strength = {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.0001}
        return {"required": {"reference": ("LATENT", {}), "strength": ("FLOAT", strength)}}

    def op(self, reference: Latent, strength: float) -> tuple[LatentOperation]:
        return (Blending(reference["samples"], strength),)


class LatentOperationTonemapReinhard:
    """The operation that shortens the longest channel vectors."""

    RETURN_TYPES = ("LATENT_OPERATION",)
    FUNCTION = "op"
    CATEGORY = "model/latent/advanced/operations"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"multiplier": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 100.0, "step": 0.01})}}

    def op(self, multiplier: float) -> tuple[LatentOperation]:
        return (ReinhardTonemap(multiplier),)


class LatentOperationSharpen:
    """The operation that sharpens latents."""

    RETURN_TYPES = ("LATENT_OPERATION",)
    FUNCTION = "op"
    CATEGORY = "model/latent/advanced/operations"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "sharpen_radius": ("INT", {"default": 9, "min": 1, "max": 31, "step": 1}),
                "sigma": ("FLOAT", {"default": 1.0, "min": 0.1, "max": 10.0, "step": 0.1}),
                "alpha": ("FLOAT", {"default": 0.1, "min": 0.0, "max": 5.0, "step": 0.01}),
            }
        }

    def op(self, sharpen_radius: int, sigma: float, alpha: float) -> tuple[LatentOperation]:
        return (Sharpening(sharpen_radius, sigma, alpha),)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "LatentAdd": LatentAdd,
    "LatentSubtract": LatentSubtract,
    "LatentMultiply": LatentMultiply,
    "LatentInterpolate": LatentInterpolate,
    "LatentBlend": LatentBlend,
    "LatentApplyOperation": LatentApplyOperation,
    "LatentOperationBlend": LatentOperationBlend,
    "LatentOperationTonemapReinhard": LatentOperationTonemapReinhard,
    "LatentOperationSharpen": LatentOperationSharpen,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "LatentOperationBlend": "Latent Operation Blend",
    "LatentBlend": "Latent Blend",
}
