"""The nodes that calculate with latents, and the operations that they and guidance can apply.

A second latent is cut and resized to the first's size, and its batch repeated or cut to the first's.
"""

from __future__ import annotations

from typing import Annotated

import torch

from serve_app.nodes.declare import node
from serve_app.nodes.image.match_size import fit_batch, fit_latents
from serve_app.nodes.inputs import Float, Int
from serve_app.nodes.sockets import LATENT, LATENT_OPERATION
from serve_app.sampling.latents.latent_operations import Blending, ReinhardTonemap, Sharpening
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


@node("LatentAdd", category="model/latent/advanced", function="op")
def latent_add(samples1: LATENT, samples2: LATENT) -> LATENT:
    """The sum of two latents. Return samples1 + samples2."""
    first, second = _pair(samples1, samples2)
    return {**samples1, "samples": first + second}


@node("LatentSubtract", category="model/latent/advanced", function="op")
def latent_subtract(samples1: LATENT, samples2: LATENT) -> LATENT:
    """The difference of two latents. Return samples1 - samples2."""
    first, second = _pair(samples1, samples2)
    return {**samples1, "samples": first - second}


@node("LatentMultiply", category="model/latent/advanced", function="op")
def latent_multiply(
    samples: LATENT, multiplier: Annotated[float, Float(1.0, min=-10.0, max=10.0, step=0.01)]
) -> LATENT:
    """Latents times a number. Return samples × multiplier."""
    return {**samples, "samples": samples["samples"] * multiplier}


@node("LatentInterpolate", category="model/latent/advanced", function="op")
def latent_interpolate(
    samples1: LATENT, samples2: LATENT, ratio: Annotated[float, Float(1.0, min=0.0, max=1.0, step=0.01)]
) -> LATENT:
    """A latent between two: directions and lengths of the channel vectors are mixed apart.

    Return samples1 at a ratio of 1, samples2 at 0.
    """
    first, second = _pair(samples1, samples2)
    lengths1, lengths2 = _lengths(first), _lengths(second)
    # A vector of length 0 has no direction: it counts as 0.
    mixed = torch.nan_to_num(first / lengths1) * ratio + torch.nan_to_num(second / lengths2) * (1.0 - ratio)
    direction = torch.nan_to_num(mixed / _lengths(mixed))
    return {**samples1, "samples": direction * (lengths1 * ratio + lengths2 * (1.0 - ratio))}


@node("LatentBlend", "Latent Blend", category="experimental", function="blend")
def latent_blend(
    samples1: LATENT, samples2: LATENT, blend_factor: Annotated[float, Float(0.5, min=0, max=1, step=0.01)]
) -> LATENT:
    """A weighted mean of two latents.

    Return samples1 at a factor of 1, samples2 at 0; either may be a single latent for all of the other's.
    """
    first, second = samples1["samples"], samples2["samples"]
    if first.shape != second.shape:
        second = fit_latents(second, first.shape[3], first.shape[2], "bicubic", "center")
    return {**samples1, "samples": first * blend_factor + second * (1 - blend_factor)}


@node("LatentApplyOperation", category="model/latent/advanced/operations", function="op", experimental=True)
def latent_apply_operation(samples: LATENT, operation: LATENT_OPERATION) -> LATENT:
    """Latents after an operation. Return what the operation makes of the latents."""
    return {**samples, "samples": operation(latent=samples["samples"])}


@node(
    "LatentOperationBlend",
    "Latent Operation Blend",
    category="model/latent/advanced/operations",
    function="op",
    description="Blends latents with a reference, which is stretched to their size.",
    experimental=True,
)
def latent_operation_blend(
    reference: LATENT, strength: Annotated[float, Float(1.0, min=0.0, max=1.0, step=0.0001)]
) -> LATENT_OPERATION:
    """The operation that moves latents towards others."""
    return Blending(reference["samples"], strength)


@node("LatentOperationTonemapReinhard", category="model/latent/advanced/operations", function="op", experimental=True)
def latent_operation_tonemap_reinhard(
    multiplier: Annotated[float, Float(1.0, min=0.0, max=100.0, step=0.01)],
) -> LATENT_OPERATION:
    """The operation that shortens the longest channel vectors."""
    return ReinhardTonemap(multiplier)


@node("LatentOperationSharpen", category="model/latent/advanced/operations", function="op", experimental=True)
def latent_operation_sharpen(
    sharpen_radius: Annotated[int, Int(9, min=1, max=31, step=1)],
    sigma: Annotated[float, Float(1.0, min=0.1, max=10.0, step=0.1)],
    alpha: Annotated[float, Float(0.1, min=0.0, max=5.0, step=0.01)],
) -> LATENT_OPERATION:
    """The operation that sharpens latents."""
    return Sharpening(sharpen_radius, sigma, alpha)
