"""Drawing a stack of layers: each flipped, scaled, turned and laid over those below it, in linear light."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, cos, degrees, floor, sin

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.execution.size import allow
from serve_app.nodes.inputs import MAX_RESOLUTION
from serve_app.nodes.layers.blending import from_linear, over, to_linear
from serve_app.nodes.layers.stack import Ground, Layer, eight_bit

OPAQUE = 1 - 1e-3
"""The alpha from which on a picture counts as whole."""


def composed(stack: Sequence[Layer], canvas: tuple[int, int], ground: Ground | None) -> Tensor:
    """Return the layers over one another, (1,H,W,4). Errors: NodeError for a canvas over the limits."""
    width, height = canvas
    if max(canvas) > MAX_RESOLUTION:
        raise NodeError(f"the canvas is {width}×{height}; {MAX_RESOLUTION} is the most for a side")
    allow(1, height, width, 4)
    made = torch.zeros(height, width, 4)
    if ground is not None:
        plain = torch.ones(height, width, 4)
        plain[..., :3] = to_linear(torch.tensor(ground.colour))
        made = over(made, plain, "normal", ground.opacity)
    for layer in stack:
        if not layer.visible:
            continue
        left, top, wide, high = _bounds(layer)
        x, y, right, bottom = max(left, 0), max(top, 0), min(left + wide, width), min(top + high, height)
        if x < right and y < bottom:
            placed = _placed(layer, wide, high)[y - top : bottom - top, x - left : right - left]
            made[y:bottom, x:right] = over(made[y:bottom, x:right], placed, layer.mode, layer.opacity)
    colours = from_linear(made[..., :3].clamp(0, 1))
    return torch.cat([colours, made[..., 3:].clamp(0, 1)], dim=-1)[None]


def extent(stack: Sequence[Layer]) -> tuple[int, int]:
    """Return the (w,h) of the least canvas that shows every layer, as far as it lies right of and below the origin."""
    ends = [(left + wide, top + high) for left, top, wide, high in map(_bounds, stack)]
    return max([1, *(right for right, _ in ends)]), max([1, *(bottom for _, bottom in ends)])


def outputs(made: Tensor) -> tuple[Tensor, Tensor]:
    """Return a picture without alpha if it is whole, and where it is transparent."""
    alpha = made[..., 3]
    if bool((alpha >= OPAQUE).all()):
        return made[..., :3], torch.zeros_like(alpha)
    return made, (1 - alpha).clamp(0, 1)


def _placed(layer: Layer, wide: int, high: int) -> Tensor:
    """Return a layer as it is shown, in the middle of its bounds, (high,wide,4) in linear light."""
    allow(1, high, wide, 4)
    pixels = eight_bit(layer.image[0, :, :, :3])
    alpha = np.full(pixels.shape[:2], 255, np.uint8) if layer.alpha is None else eight_bit(layer.alpha[0])
    image = Image.fromarray(np.dstack([pixels, alpha]), "RGBA")
    if layer.flip_h:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if layer.flip_v:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    size = max(1, round(layer.w)), max(1, round(layer.h))
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    if layer.rotation:
        image = image.rotate(-degrees(layer.rotation), Image.Resampling.BICUBIC, expand=True, fillcolor=(0, 0, 0, 0))
    drawn = torch.from_numpy(np.asarray(image, np.float32) / 255)
    drawn = torch.cat([to_linear(drawn[..., :3]), drawn[..., 3:]], dim=-1)
    rows, columns = drawn.shape[:2]
    left, top = (wide - columns) // 2, (high - rows) // 2
    made = torch.zeros(high, wide, 4)
    into = made[max(top, 0) : top + rows, max(left, 0) : left + columns]
    into.copy_(drawn[max(-top, 0) :, max(-left, 0) :][: into.shape[0], : into.shape[1]])
    return made


def _bounds(layer: Layer) -> tuple[int, int, int, int]:
    """Return (left, top, width, height) of the pixels that a layer may reach."""
    across, down = abs(cos(layer.rotation)), abs(sin(layer.rotation))
    half = (layer.w * across + layer.h * down) / 2, (layer.w * down + layer.h * across) / 2
    middle = layer.x + layer.w / 2, layer.y + layer.h / 2
    left, top = (floor(m - h) for m, h in zip(middle, half, strict=True))
    right, bottom = (ceil(m + h) for m, h in zip(middle, half, strict=True))
    return left, top, max(1, right - left), max(1, bottom - top)
