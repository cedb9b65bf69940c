"""Layers over one another: what each mode makes of the colours below and of a layer's, in linear light.

Every mode but the normal one changes colours where there is something below, and leaves alpha as it is there.
Source: the modes' usual formulas, as GIMP 3 and ComfyUI 0.33.0 have them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

Formula: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From the colours below and a layer's, (…,3), to what the mode makes of both."""

TINY = 1e-6
LUMINANCE = (0.2224884, 0.71690369, 0.06060791)
"""Of red, green and blue in linear light, for the white of D50."""


def to_linear(colours: Tensor) -> Tensor:
    """Return sRGB's numbers as linear light."""
    return torch.where(colours <= 0.04045, colours / 12.92, ((colours.clamp(min=0) + 0.055) / 1.055) ** 2.4)


def from_linear(light: Tensor) -> Tensor:
    """Return linear light as sRGB's numbers."""
    return torch.where(light <= 0.0031308, light * 12.92, 1.055 * light.clamp(min=0) ** (1 / 2.4) - 0.055)


def _overlay(below: Tensor, layer: Tensor) -> Tensor:
    return torch.where(below < 0.5, 2 * below * layer, 1 - 2 * (1 - below) * (1 - layer))


def _dodge(below: Tensor, layer: Tensor) -> Tensor:
    left = 1 - layer
    bright = torch.where(left <= TINY, 1.0, (below / left.clamp(min=TINY)).clamp(max=1))
    return torch.where(below <= 0, 0.0, bright)


def _burn(below: Tensor, layer: Tensor) -> Tensor:
    return 1 - _dodge(1 - below, 1 - layer)


def _vivid(below: Tensor, layer: Tensor) -> Tensor:
    return torch.where(layer <= 0.5, _burn(below, 2 * layer), _dodge(below, 2 * layer - 1))


def _pin(below: Tensor, layer: Tensor) -> Tensor:
    return torch.where(layer > 0.5, torch.maximum(below, 2 * layer - 1), torch.minimum(below, 2 * layer))


def _ends(colours: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the largest of each colour's numbers, the least, and their distance, (…,1)."""
    most, least = colours.amax(dim=-1, keepdim=True), colours.amin(dim=-1, keepdim=True)
    return most, least, most - least


def _hue(below: Tensor, layer: Tensor) -> Tensor:
    (high, _, spread), (top, _, own) = _ends(below), _ends(layer)
    ratio = spread / own.clamp(min=TINY)
    return torch.where(own <= TINY, below, (layer - top) * ratio + high)


def _saturation(below: Tensor, layer: Tensor) -> Tensor:
    (high, _, spread), (top, _, own) = _ends(below), _ends(layer)
    ratio = own / torch.where(top == 0, 1.0, top) * high / spread.clamp(min=TINY)
    return torch.where(spread <= TINY, high.expand_as(below), (below - high) * ratio + high)


def _colour(below: Tensor, layer: Tensor) -> Tensor:
    (high, low, _), (top, bottom, _) = _ends(below), _ends(layer)
    wanted, own = (high + low) / 2, (top + bottom) / 2
    room = torch.minimum(wanted, 1 - wanted)
    ratio = room / torch.minimum(own, 1 - own).clamp(min=TINY)
    offset = torch.where(wanted > 0.5, 1 - 2 * room, 0.0) + torch.where(own > 0.5, 2 * room - ratio, 0.0)
    grey = (own.abs() <= TINY) | ((1 - own).abs() <= TINY)
    return torch.where(grey, wanted.expand_as(below), layer * ratio + offset)


def _luminosity(below: Tensor, layer: Tensor) -> Tensor:
    weights = below.new_tensor(LUMINANCE)
    there, wanted = ((colours * weights).sum(dim=-1, keepdim=True) for colours in (below, layer))
    return torch.where(there <= TINY, wanted.expand_as(below), below * (wanted / there.clamp(min=TINY)))


_IN_LIGHT: Mapping[str, Formula] = {
    "multiply": lambda below, layer: below * layer,
    "darken": torch.minimum,
    "lighten": torch.maximum,
    "linear-dodge": lambda below, layer: below + layer,
    "subtract": lambda below, layer: (below - layer).clamp(min=0),
    "divide": lambda below, layer: (below / layer.clamp(min=TINY)).clamp(0, 1),
    "luminosity": _luminosity,
}
_AS_SEEN: Mapping[str, Formula] = {
    "screen": lambda below, layer: below + layer - below * layer,
    "overlay": _overlay,
    "color-dodge": _dodge,
    "color-burn": _burn,
    "hard-light": lambda below, layer: _overlay(layer, below),
    "soft-light": lambda below, layer: below * (below + 2 * layer * (1 - below)),
    "difference": lambda below, layer: (below - layer).abs(),
    "exclusion": lambda below, layer: below + layer - 2 * below * layer,
    "linear-burn": lambda below, layer: below + layer - 1,
    "vivid-light": _vivid,
    "pin-light": _pin,
    "linear-light": lambda below, layer: below + 2 * layer - 1,
    "hard-mix": lambda below, layer: (below + layer >= 1).to(below.dtype),
    "grain-extract": lambda below, layer: below - layer + 0.5,
    "grain-merge": lambda below, layer: below + layer - 0.5,
    "hue": _hue,
    "saturation": _saturation,
    "color": _colour,
}
"""Of sRGB's numbers."""

MODES = (
    *("normal", "multiply", "screen", "overlay", "darken", "lighten", "color-dodge", "color-burn", "hard-light"),
    *("soft-light", "difference", "exclusion", "linear-dodge", "linear-burn", "vivid-light", "pin-light"),
    *("linear-light", "hard-mix", "subtract", "divide", "grain-extract", "grain-merge"),
    *("hue", "saturation", "color", "luminosity"),
)
"""The modes, as the page lists them."""


def over(below: Tensor, layer: Tensor, mode: str, opacity: float) -> Tensor:
    """Return a layer over what is below, both (h,w,4) in linear light with straight alpha. Another mode is normal."""
    colours, alpha = below[..., :3], below[..., 3:]
    own, share = layer[..., :3], layer[..., 3:] * opacity
    if mode in _IN_LIGHT:
        made = _IN_LIGHT[mode](colours, own)
    elif mode in _AS_SEEN:
        made = to_linear(_AS_SEEN[mode](from_linear(colours), from_linear(own)))
    else:
        joined = share + (1 - share) * alpha
        mixed = torch.lerp(colours, own, share / torch.where(joined == 0, 1.0, joined))
        return torch.cat([torch.where(share == 0, colours, mixed), joined], dim=-1)
    mixed = torch.where((alpha == 0) | (share == 0), colours, torch.lerp(colours, made, share))
    return torch.cat([mixed, alpha], dim=-1)
