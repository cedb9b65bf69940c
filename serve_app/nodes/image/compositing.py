"""The nodes that paste a latent onto another, or an image, through a mask or with soft edges.

What is pasted is cut at the edges of what is below it, and its batch is repeated or cut to that one's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from serve_app.nodes.image.match_size import fit_batch, fit_mask
from serve_app.nodes.latent.latents import MAX_RESOLUTION
from serve_app.values import Latent


def _lay_over(below: Tensor, above: Tensor, x: int, y: int, weight: Tensor | None) -> Tensor:
    """Return below (B,C,H,W) with above (B,C,h,w) at (x, y), mixed in by weight, which broadcasts to above's shape."""
    height, width = max(0, below.shape[-2] - y), max(0, below.shape[-1] - x)
    above = above[..., :height, :width]
    place = (..., slice(y, y + above.shape[-2]), slice(x, x + above.shape[-1]))
    out = below.clone()
    if weight is None:
        out[place] = above
    else:
        seen = weight[..., :height, :width]
        out[place] = seen * above + (1 - seen) * out[place]
    return out


def paste(below: Tensor, above: Tensor, x: int, y: int, mask: Tensor | None, fill: bool) -> Tensor:
    """Return below with above at (x, y) where the mask is 1; fill: above is first resized to below's size."""
    if fill:
        above = interpolate(above, size=below.shape[-2:], mode="bilinear")
    above = fit_batch(above, below.shape[0])
    weight = None if mask is None else fit_batch(fit_mask(mask, above.shape[-2], above.shape[-1]), above.shape[0])
    return _lay_over(below, above, x, y, weight)


class LatentComposite:
    """A latent pasted onto another, with soft edges."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "composite"
    CATEGORY = "model/latent"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        pixels = {"default": 0, "min": 0, "max": MAX_RESOLUTION, "step": 8}
        return {
            "required": {
                "samples_to": ("LATENT",),
                "samples_from": ("LATENT",),
                "x": ("INT", pixels),
                "y": ("INT", pixels),
                "feather": ("INT", pixels),
            }
        }

    def composite(self, samples_to: Latent, samples_from: Latent, x: int, y: int, feather: int = 0) -> tuple[Latent]:
        """Return samples_to with samples_from at (x, y), faded in over feather pixels on edges inside samples_to."""
        x, y, feather = x // 8, y // 8, feather // 8
        below: Tensor = samples_to["samples"]
        above = fit_batch(samples_from["samples"], below.shape[0])
        weight = None
        if feather:
            rows, columns = (
                _faded_edges(min(size, whole - start), feather, start > 0, start + size < whole)
                for start, size, whole in zip((y, x), above.shape[-2:], below.shape[-2:], strict=True)
            )
            weight = rows[:, None] * columns
        return ({**samples_to, "samples": _lay_over(below, above, x, y, weight)},)


def _faded_edges(size: int, feather: int, at_start: bool, at_end: bool) -> Tensor:
    """Return weights (size,) that rise over feather positions from the start, and fall towards the end."""
    weights = torch.ones(max(0, size))
    for i in range(feather):
        rate = (1.0 / feather) * (i + 1)
        if at_start:
            weights[i : i + 1] *= rate
        if at_end:
            # A feather of more than size goes on from the end again, as slices with negative bounds do in ComfyUI.
            weights[size - 1 - i : size - i] *= rate
    return weights


class LatentCompositeMasked:
    """A latent pasted onto another through a mask."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "composite"
    CATEGORY = "model/latent"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        start = {"default": 0, "min": 0, "max": MAX_RESOLUTION, "step": 8}
        return {
            "required": {
                "destination": ("LATENT",),
                "source": ("LATENT",),
                "x": ("INT", start),
                "y": ("INT", start),
                "resize_source": ("BOOLEAN", {"default": False}),
            },
            "optional": {"mask": ("MASK",)},
        }

    def composite(
        self, destination: Latent, source: Latent, x: int, y: int, resize_source: bool, mask: Tensor | None = None
    ) -> tuple[Latent]:
        """Return the destination with the source at (x, y) pixels; the mask is resized to the source."""
        laid = paste(destination["samples"], source["samples"], x // 8, y // 8, mask, resize_source)
        return ({**destination, "samples": laid},)


class ImageCompositeMasked:
    """An image pasted onto another through a mask."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "composite"
    CATEGORY = "image/compositing"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        start = {"default": 0, "min": 0, "max": MAX_RESOLUTION, "step": 1}
        return {
            "required": {
                "destination": ("IMAGE",),
                "source": ("IMAGE",),
                "x": ("INT", start),
                "y": ("INT", start),
                "resize_source": ("BOOLEAN", {"default": False}),
            },
            "optional": {"mask": ("MASK",)},
        }

    def composite(
        self, destination: Tensor, source: Tensor, x: int, y: int, resize_source: bool, mask: Tensor | None = None
    ) -> tuple[Tensor]:
        """Return the destination with the source at (x, y); the mask is resized to the source.

        A source's alpha is left out over a destination without; a source without alpha is opaque.
        """
        extra = destination.shape[-1] - source.shape[-1]
        source = pad(source, (0, extra), value=1.0) if extra > 0 else source[..., : destination.shape[-1]]
        laid = paste(destination.movedim(-1, 1), source.movedim(-1, 1), x, y, mask, resize_source)
        return (laid.movedim(1, -1),)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "LatentComposite": LatentComposite,
    "LatentCompositeMasked": LatentCompositeMasked,
    "ImageCompositeMasked": ImageCompositeMasked,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "LatentComposite": "Latent Composite",
    "LatentCompositeMasked": "Latent Composite Masked",
    "ImageCompositeMasked": "Image Composite Masked",
}
