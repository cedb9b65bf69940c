"""SAM 3.1's image encoder: a vision transformer whose layers attend in windows, and pyramids of what it sees.

Layers are transformers' of SAM 3. Sources: Carion et al. 2025, arXiv:2511.16719; Li et al. 2022, arXiv:2203.16527;
numbers are ComfyUI's, which reads pixels in 0…1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.sam3.configuration_sam3 import Sam3ViTConfig
from transformers.models.sam3.modeling_sam3 import (
    Sam3FPNLayer,
    Sam3MLP,
    Sam3ViTRoPEAttention,
    window_partition,
    window_unpartition,
)

from serve_app.models.families.sam3.layers import Turns, grid_turns, with_sdpa

SIDE = 1008
"""Pixels along both sides of the images it reads."""
PATCH = 14
GRID = SIDE // PATCH
"""Tokens of an image along a side."""
WINDOW = 24
"""Tokens along a side of a window, and along that of the images that its positions were trained with first."""
HEAD = 64
"""Width of its attention's heads."""
QUARTERS = 4
"""The last layer of each quarter of them attends to the whole image, the others within windows."""
SCALES = (4.0, 2.0, 1.0)
"""Of a pyramid's maps, finest first, to the grid of tokens."""
PYRAMIDS = ("convs", "propagation_convs", "interactive_convs")
"""For what texts name, for what is followed, and for what points, boxes and masks show."""


class Block(nn.Module):
    """A layer. window: tokens along a side of a window; 0: it attends to the whole image."""

    def __init__(self, config: Any, window: int) -> None:
        super().__init__()
        self.window = window
        self.norm1, self.norm2 = (nn.LayerNorm(config.hidden_size) for _ in range(2))
        self.attn = Sam3ViTRoPEAttention(config)
        self.mlp = Sam3MLP(config)

    def forward(self, x: Tensor, turns: Turns) -> Tensor:
        size = x.shape[1:3]
        seen, padded = window_partition(self.norm1(x), self.window or size[0])
        seen, _ = self.attn(seen, turns)
        x = x + window_unpartition(seen, self.window or size[0], padded, size)
        made: Tensor = x + self.mlp(self.norm2(x))
        return made


class Trunk(nn.Module):
    """The vision transformer. It returns maps (B,width,GRID,GRID) of pixels (B,3,SIDE,SIDE) in 0…1."""

    def __init__(self, width: int, inside: int, layers: int) -> None:
        super().__init__()
        config = with_sdpa(
            Sam3ViTConfig(
                hidden_size=width,
                intermediate_size=inside,
                num_hidden_layers=layers,
                num_attention_heads=width // HEAD,
            )
        )
        self.patch_embed = nn.Conv2d(3, width, PATCH, stride=PATCH, bias=False)
        self.pos_embed = nn.Parameter(torch.empty(1, WINDOW**2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        quarter = max(1, layers // QUARTERS)
        self.blocks = nn.ModuleList(
            Block(config, 0 if (number + 1) % quarter == 0 else WINDOW) for number in range(layers)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed(pixels).permute(0, 2, 3, 1)
        # The first position is of a token that this network has not. Others are repeated, not stretched.
        known = self.pos_embed[0, 1:].view(WINDOW, WINDOW, -1)
        x = self.ln_pre(x + known.tile(GRID // WINDOW, GRID // WINDOW, 1))
        whole = grid_turns(GRID, HEAD, WINDOW / GRID, x.device)
        in_window = grid_turns(WINDOW, HEAD, 1.0, x.device)
        for block in self.blocks:
            x = block(x, in_window if block.window else whole)
        made: Tensor = x.permute(0, 3, 1, 2)
        return made


class Vision(nn.Module):
    """The trunk and its pyramids."""

    def __init__(self, width: int, inside: int, layers: int, out: int) -> None:
        super().__init__()
        self.trunk = Trunk(width, inside, layers)
        for name in PYRAMIDS:
            self.add_module(name, nn.ModuleList(Sam3FPNLayer(width, out, scale) for scale in SCALES))

    def pyramid(self, name: str, seen: Tensor) -> list[Tensor]:
        """Return the maps of a pyramid of what the trunk has seen, finest first."""
        return [layer(seen) for layer in getattr(self, name)]
