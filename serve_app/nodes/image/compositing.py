"""The nodes that paste a latent onto another, or an image, through a mask or with soft edges.

What is pasted is cut at the edges of what is below it, and its batch is repeated or cut to that one's.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from serve_app.nodes.declare import node
from serve_app.nodes.image.match_size import fit_batch, fit_mask
from serve_app.nodes.inputs import MAX_RESOLUTION, Bool, Corner, Int
from serve_app.nodes.sockets import IMAGE, LATENT, MASK


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


Pixels: TypeAlias = Annotated[int, Int(0, min=0, max=MAX_RESOLUTION, step=8)]


@node("LatentComposite", "Latent Composite", category="model/latent", function="composite", required=("feather",))
def latent_composite(samples_to: LATENT, samples_from: LATENT, x: Pixels, y: Pixels, feather: Pixels = 0) -> LATENT:
    """A latent pasted onto another, with soft edges.

    Return samples_to with samples_from at (x, y), faded in over feather pixels on edges inside samples_to.
    """
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
    return {**samples_to, "samples": _lay_over(below, above, x, y, weight)}


def _faded_edges(size: int, feather: int, at_start: bool, at_end: bool) -> Tensor:
    """Return weights (size,) that rise over feather positions from the start, and fall towards the end."""
    weights = torch.ones(max(0, size))
    for i in range(min(feather, 2 * weights.numel())):
        rate = (1.0 / feather) * (i + 1)
        if at_start:
            weights[i : i + 1] *= rate
        if at_end:
            # A feather of more than size goes on from the end again, as slices with negative bounds do in ComfyUI.
            weights[size - 1 - i : size - i] *= rate
    return weights


@node("LatentCompositeMasked", "Latent Composite Masked", category="model/latent", function="composite")
def latent_composite_masked(
    destination: LATENT,
    source: LATENT,
    x: Pixels,
    y: Pixels,
    resize_source: Annotated[bool, Bool(False)],
    mask: MASK | None = None,
) -> LATENT:
    """A latent pasted onto another through a mask.

    Return the destination with the source at (x, y) pixels; the mask is resized to the source.
    """
    laid = paste(destination["samples"], source["samples"], x // 8, y // 8, mask, resize_source)
    return {**destination, "samples": laid}


@node("ImageCompositeMasked", "Image Composite Masked", category="image/compositing", function="composite")
def image_composite_masked(
    destination: IMAGE,
    source: IMAGE,
    x: Corner,
    y: Corner,
    resize_source: Annotated[bool, Bool(False)],
    mask: MASK | None = None,
) -> IMAGE:
    """An image pasted onto another through a mask.

    Return the destination with the source at (x, y); the mask is resized to the source.

    A source's alpha is left out over a destination without; a source without alpha is opaque.
    """
    extra = destination.shape[-1] - source.shape[-1]
    source = pad(source, (0, extra), value=1.0) if extra > 0 else source[..., : destination.shape[-1]]
    laid = paste(destination.movedim(-1, 1), source.movedim(-1, 1), x, y, mask, resize_source)
    return laid.movedim(1, -1)
