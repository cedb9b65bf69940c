"""Layers that the parts of SAM 3.1 share: small perceptrons, norms of maps, positions as waves and rotations."""

from __future__ import annotations

from itertools import pairwise
from math import pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, scaled_dot_product_attention

HEADS = 8
"""Attention heads of all transformers but the image encoder's."""
PERIOD = 10000.0
Turns = tuple[Tensor, Tensor]
"""Cosines and sines (N,D) by which the numbers of N tokens' heads are rotated, pair by pair."""


class Perceptron(nn.Module):
    """Linear layers with ReLU between them. widths: of the input and of each layer's output."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        *inner, last = self.layers
        for layer in inner:
            x = relu(layer(x))
        made: Tensor = last(x)
        return made


class MapNorm(nn.LayerNorm):
    """A layer norm over the channels of maps (B,C,h,w)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def waves(positions: Tensor, width: int) -> Tensor:
    """Return sines and cosines in turns (…,width) of positions in 0…1, float32."""
    periods = PERIOD ** (2 * (torch.arange(width, dtype=torch.float32, device=positions.device) // 2) / width)
    angles = positions.float()[..., None] * (2 * pi) / periods
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), -1).flatten(-2)


def map_positions(features: Tensor) -> Tensor:
    """Return the waves (1,C,h,w) of the rows and columns of maps (B,C,h,w), of their dtype."""
    channels, height, width = features.shape[1:]
    down, across = (torch.arange(n, device=features.device) / (n - 1 + 1e-6) for n in (height, width))
    y = waves(down, channels // 2)[:, None].expand(-1, width, -1)
    x = waves(across, channels // 2)[None].expand(height, -1, -1)
    return torch.cat((y, x), -1).permute(2, 0, 1)[None].to(features.dtype)


def grid_turns(side: int, head: int, scale: float, device: torch.device) -> Turns:
    """Return the rotations of a square of tokens: half of a head's numbers by their columns, the others by their rows.

    side: tokens of its side. scale: of positions.
    """
    steps = torch.arange(0, head // 2, 2, dtype=torch.float32, device=device) / (head // 2)
    at = torch.arange(side**2, device=device)
    places = torch.stack((at % side, at // side), -1).float() * scale
    angles = (places[..., None] * PERIOD**-steps).flatten(-2).repeat_interleave(2, -1)
    return angles.cos(), angles.sin()


def rotated(x: Tensor, turns: Turns) -> Tensor:
    """Return heads (B,H,N,D) rotated by turns."""
    cos, sin = turns
    pairs = torch.unflatten(x.float(), -1, (-1, 2))
    across = torch.stack((-pairs[..., 1], pairs[..., 0]), -1).flatten(-2)
    return (x.float() * cos + across * sin).to(x.dtype)


def heads_of(x: Tensor) -> Tensor:
    """Return tokens (B,N,C) as heads (B,HEADS,N,C/HEADS)."""
    return torch.unflatten(x, -1, (HEADS, -1)).transpose(1, 2)


def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return what heads attend to, as tokens (B,N,C)."""
    return scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def tokens_of(maps: Tensor) -> Tensor:
    """Return maps (B,C,h,w) as tokens (B,h·w,C)."""
    return maps.flatten(2).transpose(1, 2)


def maps_of(tokens: Tensor, like: Tensor) -> Tensor:
    """Return tokens (B,h·w,C) as maps (B,C,h,w) of the size of others."""
    return torch.unflatten(tokens.transpose(1, 2), 2, like.shape[-2:])


def with_sdpa(config: Any) -> Any:
    """Return a configuration of transformers' layers, which compute attention by torch's function then."""
    config._attn_implementation = "sdpa"
    return config
