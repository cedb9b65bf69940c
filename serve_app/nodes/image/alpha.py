"""The nodes for images with transparency. A MASK that stands for alpha is 1 where the image is transparent.

The operators work on colours that are already multiplied by their alpha. Sources: Porter and Duff 1984, "Compositing
digital images"; the blend modes as Android's documentation of PorterDuff.Mode has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, TypeAlias

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.nodes.declare import node
from serve_app.nodes.image.match_size import fit_batch, fit_mask, resize
from serve_app.nodes.inputs import Choice
from serve_app.nodes.sockets import IMAGE, MASK

Operator: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From source colours and alpha, destination colours and alpha, to what is seen, all (B,H,W,C) or (B,H,W,1)."""


def _factors(of: Callable[[Tensor, Tensor], tuple[Tensor | int, Tensor | int]]) -> Operator:
    """Return Porter and Duff's operator from how much of source and destination stays, given both alphas."""

    def operator(s: Tensor, sa: Tensor, d: Tensor, da: Tensor) -> tuple[Tensor, Tensor]:
        of_source, of_destination = of(sa, da)
        return s * of_source + d * of_destination, sa * of_source + da * of_destination

    return operator


def _overlay(s: Tensor, sa: Tensor, d: Tensor, da: Tensor) -> Tensor:
    # In the bright half, colours and alphas are crossed: the W3C's mode has (da - d)·(sa - s).
    return torch.where(2 * d < da, 2 * s * d, sa * da - 2 * (da - s) * (sa - d))


OPERATORS: Mapping[str, Operator] = {
    "ADD": lambda s, sa, d, da: ((s + d).clamp(0, 1), (sa + da).clamp(0, 1)),
    "CLEAR": _factors(lambda sa, da: (0, 0)),
    "DARKEN": lambda s, sa, d, da: ((1 - da) * s + (1 - sa) * d + torch.minimum(s, d), sa + da - sa * da),
    "DST": _factors(lambda sa, da: (0, 1)),
    "DST_ATOP": lambda s, sa, d, da: (s * (1 - da) + d * sa, sa),
    "DST_IN": _factors(lambda sa, da: (0, sa)),
    "DST_OUT": _factors(lambda sa, da: (0, 1 - sa)),
    "DST_OVER": _factors(lambda sa, da: (1 - da, 1)),
    "LIGHTEN": lambda s, sa, d, da: ((1 - da) * s + (1 - sa) * d + torch.maximum(s, d), sa + da - sa * da),
    "MULTIPLY": lambda s, sa, d, da: (s * d, sa * da),
    "OVERLAY": lambda s, sa, d, da: (_overlay(s, sa, d, da), sa + da - sa * da),
    "SCREEN": lambda s, sa, d, da: (s + d - s * d, sa + da - sa * da),
    "SRC": _factors(lambda sa, da: (1, 0)),
    "SRC_ATOP": lambda s, sa, d, da: (s * da + d * (1 - sa), da),
    "SRC_IN": _factors(lambda sa, da: (da, 0)),
    "SRC_OUT": _factors(lambda sa, da: (1 - da, 0)),
    "SRC_OVER": _factors(lambda sa, da: (1, 1 - sa)),
    "XOR": _factors(lambda sa, da: (1 - da, 1 - sa)),
}


@node("PorterDuffImageComposite", "Porter-Duff Image Composite", category="image/compositing", function="composite")
def porter_duff_image_composite(
    source: IMAGE,
    source_alpha: MASK,
    destination: IMAGE,
    destination_alpha: MASK,
    mode: Annotated[str, Choice(OPERATORS, default="DST")],
) -> tuple[IMAGE, MASK]:
    """Two images with alpha, as one.

    Return images and masks of the destination's size, as many as the shortest input has.

    Errors: NodeError for images of which one alone has an alpha channel.
    """
    if source.shape[-1] != destination.shape[-1]:
        raise NodeError(
            f"source has {source.shape[-1]} channels and destination {destination.shape[-1]}: they must be equal"
        )
    count = min(map(len, (source, source_alpha, destination, destination_alpha)))
    d = destination[:count]
    masks = (mask[:count].unsqueeze(-1) for mask in (source_alpha, destination_alpha))
    s_alpha, d_alpha = (1 - _sized_as(mask, d) for mask in masks)
    s = _sized_as(source[:count], d)
    seen, alpha = OPERATORS[mode](s * s_alpha, s_alpha, d * d_alpha, d_alpha)
    colours = torch.where(alpha > 1e-5, seen / alpha, 0.0).clamp(0, 1)
    return colours, 1 - alpha.squeeze(-1)


def _sized_as(x: Tensor, other: Tensor) -> Tensor:
    """Return x (B,h,w,C) cut and resized to the other's height and width."""
    height, width = other.shape[1:3]
    return x if x.shape[1:3] == (height, width) else resize(x, width, height, "bicubic", "center")


@node("SplitImageWithAlpha", "Split Image with Alpha", category="image/compositing", function="split_image_with_alpha")
def split_image_with_alpha(image: IMAGE) -> tuple[IMAGE, MASK]:
    """Images with alpha, as images and masks.

    Return images (B,H,W,3) and masks (B,H,W), 0 for images without alpha.
    """
    alpha = image[..., 3] if image.shape[-1] > 3 else torch.ones_like(image[..., 0])
    return image[..., :3].contiguous(), 1.0 - alpha


@node("JoinImageWithAlpha", "Join Image with Alpha", category="image/compositing", function="join_image_with_alpha")
def join_image_with_alpha(image: IMAGE, alpha: MASK) -> IMAGE:
    """Images and masks, as images with alpha.

    Return images (B,H,W,4), as many as the longer input has; the other repeats, and the mask is resized.
    """
    opacity = 1.0 - fit_mask(alpha, image.shape[1], image.shape[2]).movedim(1, -1)
    # Of a mask without a batch the rows count, as in ComfyUI.
    count = max(len(image), len(alpha))
    return torch.cat([fit_batch(image, count)[..., :3], fit_batch(opacity, count)], dim=-1)
