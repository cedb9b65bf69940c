"""Layers, and stacks of them as the socket LAYERS has them: reading one, adding to one.

A stack is {"version": 1, "layers": [{"image", "x", "y", "z_index", …}], "canvas": (w,h)}.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from serve_app.errors import NodeError
from serve_app.nodes.layers.blending import MODES

Document: TypeAlias = "dict[str, Any]"
"""LAYERS."""

MOST_LAYERS = 50


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One picture of a stack. image: (1,H,W,3|4); alpha: (1,H,W), None where it is whole. w, h: how large it is shown.

    rotation: in radians, clockwise.
    """

    image: Tensor
    alpha: Tensor | None
    name: str | None = None
    x: float = 0
    y: float = 0
    w: float = 0
    h: float = 0
    rotation: float = 0.0
    opacity: float = 1.0
    mode: str = "normal"
    visible: bool = True
    flip_h: bool = False
    flip_v: bool = False

    def digest(self) -> str:
        """Return what tells it from others, as the page keeps it with a composition."""
        digest = hashlib.sha256(repr(tuple(self.image.shape)).encode())
        digest.update(eight_bit(self.image[0, :, :, :3]).tobytes())
        if self.alpha is not None:
            digest.update(eight_bit(self.alpha[0]).tobytes())
        places = (self.x, self.y, self.w, self.h, self.rotation, self.opacity, self.mode, self.visible)
        digest.update(repr((*places, self.flip_h, self.flip_v)).encode())
        return digest.hexdigest()[:16]

    def shown(self) -> dict[str, Any]:
        """Return the layer as the page's editor reads it."""
        return {
            "x": self.x,
            "y": self.y,
            "width": int(self.w),
            "height": int(self.h),
            "rotation": self.rotation,
            "name": self.name,
            "visible": self.visible,
            "opacity": self.opacity,
            "blend": self.mode,
            "flipH": self.flip_h,
            "flipV": self.flip_v,
        }


class Ground(NamedTuple):
    """What lies below all layers: red, green and blue in 0…1 of sRGB, and how opaque it is."""

    colour: tuple[float, float, float]
    opacity: float


def stacked(before: Document | None, items: Sequence[Mapping[str, Any]]) -> Document:
    """Return a stack with more items on top, on the same canvas."""
    document: Document = {"version": 1, "layers": [*((before or {}).get("layers") or ()), *items]}
    if (size := size_of(before)) is not None:
        document["canvas"] = size
    return document


def layers_of(document: Any) -> Iterator[Layer]:
    """Yield the layers from the lowest up, one for each picture of an item. Errors: NodeError for what is no stack."""
    if not isinstance(document, Mapping) or document.get("version", 1) != 1:
        raise NodeError("layers are {'version': 1, 'layers': […]}, as Add Layer makes them")
    items = [item for item in document.get("layers") or () if isinstance(item, Mapping)]
    count = 0
    for item in sorted(items, key=lambda item: whole(item.get("z_index"))):
        mode = item.get("blend_mode") or "normal"
        if item.get("type", "raster") != "raster" or mode not in MODES:
            raise NodeError(
                f"a layer of type {item.get('type')!r} and mode {mode!r}; only rasters of {', '.join(MODES)}"
            )
        image = item.get("image")
        if not isinstance(image, Tensor):
            continue
        count += len(image)
        if count > MOST_LAYERS:
            raise NodeError(f"there are {count} layers or more; {MOST_LAYERS} is the most")
        for number in range(len(image)):
            frame = image[number : number + 1]
            wide, high = whole(item.get("w")), whole(item.get("h"))
            yield Layer(
                frame,
                _alpha(frame, frame_mask(item.get("mask"), number)),
                item["name"] if isinstance(item.get("name"), str) else None,
                whole(item.get("x")),
                whole(item.get("y")),
                wide if wide > 0 else frame.shape[2],
                high if high > 0 else frame.shape[1],
                finite(item.get("rotation"), 0.0),
                finite(item.get("opacity"), 1.0),
                mode,
                bool(item.get("visible", True)),
                bool(item.get("flip_h", False)),
                bool(item.get("flip_v", False)),
            )


def _alpha(image: Tensor, mask: Tensor | None) -> Tensor | None:
    alpha = image[..., 3] if image.shape[-1] == 4 else None
    if mask is None:
        return alpha
    mask = mask.float()
    if mask.shape[1:] != image.shape[1:3]:
        mask = interpolate(mask[:, None], size=image.shape[1:3], mode="bilinear")[:, 0]
    kept = (1 - mask).clamp(0, 1)
    return kept if alpha is None else alpha * kept


def frame_mask(mask: Tensor | None, number: int) -> Tensor | None:
    """Return the mask (1,H,W) of one picture of a batch; a single mask is that of every one."""
    if mask is None or len(mask) == 1:
        return mask
    return mask[number : number + 1] if number < len(mask) else None


def size_of(document: Any) -> tuple[int, int] | None:
    """Return the canvas that a stack names, (w,h)."""
    canvas = document.get("canvas") if isinstance(document, Mapping) else None
    if not isinstance(canvas, list | tuple) or len(canvas) != 2:
        return None
    width, height = map(whole, canvas)
    return (width, height) if width > 0 and height > 0 else None


def finite(value: Any, otherwise: float) -> float:
    """Return a value of a client's if it is a finite number, else `otherwise`."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    return value if usable else otherwise


def whole(value: Any, otherwise: int = 0) -> int:
    """Return the same, cut to a whole number."""
    return int(finite(value, otherwise))


def eight_bit(numbers: Tensor) -> np.ndarray:
    """Return numbers in 0…1 as bytes, rounded."""
    rounded: np.ndarray = (numbers.float().cpu() * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    return rounded
