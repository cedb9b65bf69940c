"""SAM 3.1's memory of a video: frames with the masks of what is followed, up to sixteen things in one bucket.

Each bucket is one row of a forward, so sixteen things take the time of one. Sources: Ravi et al. 2024,
arXiv:2408.00714; Carion et al. 2025, arXiv:2511.16719; numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, pad

from serve_app.models.families.sam3.layers import HEADS, MapNorm, attended, grid_turns, heads_of, rotated
from serve_app.models.families.sam3.vision import GRID

BUCKET = 16
"""Things in a bucket."""
MASK_SIDE = 1152
"""Cells along a side of the masks that are remembered."""
FRAMES = 7
"""Frames that are remembered with their maps."""
POINTERS = 16
"""Frames that are remembered by a token of each thing."""


def bucketed(of_things: Tensor) -> Tensor:
    """Return what (N,…) is of things in buckets (K,BUCKET,…), the last filled up with zeros."""
    lacking = -len(of_things) % BUCKET
    return torch.unflatten(pad(of_things, (0, 0) * (of_things.ndim - 1) + (0, lacking)), 0, (-1, BUCKET))


def with_buckets(buckets: Tensor, count: int) -> Tensor:
    """Return buckets (K,…) with empty ones after them, `count` in all."""
    return pad(buckets, (0, 0) * (buckets.ndim - 1) + (0, max(0, count - len(buckets))))


class FuserBlock(nn.Module):
    """A ConvNeXt block. Source: Liu et al. 2022, arXiv:2201.03545."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.pwconv1, self.pwconv2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        changed = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        made: Tensor = self.pwconv2(gelu(self.pwconv1(changed))) * self.gamma
        return x + made.permute(0, 3, 1, 2)


class MemoryEncoder(nn.Module):
    """Makes maps to remember of an image's and of masks. steps: channels after each halving of the masks."""

    def __init__(self, width: int, steps: Sequence[int], fusers: int) -> None:
        super().__init__()
        channels = (2 * BUCKET, *steps)
        halved = (
            (nn.Conv2d(before, after, 3, stride=2, padding=1), MapNorm(after), nn.GELU())
            for before, after in zip(channels, steps, strict=False)
        )
        self.mask_downsampler: Any = nn.Module()
        self.mask_downsampler.encoder = nn.Sequential(
            *(layer for layers in halved for layer in layers), nn.Conv2d(steps[-1], width, 1)
        )
        self.pix_feat_proj = nn.Conv2d(width, width, 1)
        self.fuser: Any = nn.Module()
        self.fuser.layers = nn.Sequential(*(FuserBlock(width) for _ in range(fusers)))

    def forward(self, image: Tensor, masks: Tensor) -> Tensor:
        """Return maps (K,C,GRID,GRID). image: (1,C,GRID,GRID); masks: (K,2·BUCKET,h,w)."""
        if masks.shape[-2:] != (MASK_SIDE, MASK_SIDE):
            masks = interpolate(masks, (MASK_SIDE, MASK_SIDE), mode="bilinear", align_corners=False, antialias=True)
        drawn = self.mask_downsampler.encoder(masks)
        made: Tensor = self.fuser.layers(self.pix_feat_proj(image) + drawn)
        return made


class Remembered(NamedTuple):
    """Tokens of earlier frames for K buckets. memory: (K,R,C), those of maps and then pointers; positions: (K,R,C);
    image: (1,S,C), what the image encoder saw, for the tokens of maps; image_positions: (1,S,C).
    """

    memory: Tensor
    positions: Tensor
    image: Tensor
    image_positions: Tensor


class MemoryLayer(nn.Module):
    """A layer in which an image attends to itself and to what is remembered."""

    def __init__(self, width: int, inside: int) -> None:
        super().__init__()
        self.self_attn_q_proj, self.self_attn_k_proj, self.self_attn_v_proj = (nn.Linear(width, width) for _ in "qkv")
        self.cross_attn_q_proj, self.cross_attn_k_proj, self.cross_attn_v_proj = (
            nn.Linear(width, width) for _ in "qkv"
        )
        self.image_cross_attn_q_proj, self.image_cross_attn_k_proj = (nn.Linear(width, width) for _ in "qk")
        self.self_attn_out_proj, self.cross_attn_out_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.linear1, self.linear2 = nn.Linear(width, inside), nn.Linear(inside, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, image: Tensor, remembered: Remembered) -> Tensor:
        """Return tokens (K,N,C). image: what the image encoder saw, (1,N,C). remembered: with images of all tokens."""
        turns = grid_turns(GRID, x.shape[-1] // HEADS, 1.0, x.device)
        own = self.norm1(x)
        query, key = (rotated(heads_of(of(own)), turns) for of in (self.self_attn_q_proj, self.self_attn_k_proj))
        x = x + self.self_attn_out_proj(attended(query, key, heads_of(self.self_attn_v_proj(own))))
        query = heads_of(self.image_cross_attn_q_proj(image) + self.cross_attn_q_proj(self.norm2(x)))
        key = heads_of(
            self.image_cross_attn_k_proj(remembered.image)
            + self.cross_attn_k_proj(remembered.memory)
            + remembered.image_positions
        )
        frames = self.frames_of(remembered)
        placed = key[:, :, : frames * GRID**2]
        many = (turns[0].repeat(frames, 1), turns[1].repeat(frames, 1))
        key = torch.cat((rotated(placed, many), key[:, :, frames * GRID**2 :]), 2)
        value = heads_of(self.cross_attn_v_proj(remembered.memory))
        x = x + self.cross_attn_out_proj(attended(rotated(query, turns), key, value))
        made: Tensor = x + self.linear2(gelu(self.linear1(self.norm3(x))))
        return made

    @staticmethod
    def frames_of(remembered: Remembered) -> int:
        """Return how many frames' maps are remembered; pointers are fewer than the tokens of one."""
        return remembered.memory.shape[1] // GRID**2


class MemoryAttention(nn.Module):
    """The layers of an image's attention to what is remembered."""

    def __init__(self, width: int, inside: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MemoryLayer(width, inside) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Tensor, positions: Tensor, remembered: Remembered) -> Tensor:
        """Return tokens (K,N,C) of an image (1,N,C)."""
        pointers = remembered.memory.shape[1] - remembered.image.shape[1]
        buckets = len(remembered.memory)
        seen = pad(remembered.image, (0, 0, 0, pointers)).expand(buckets, -1, -1)
        ends = remembered.positions[:, remembered.positions.shape[1] - pointers :]
        placed = torch.cat((remembered.image_positions.expand(buckets, -1, -1), ends), 1)
        whole = remembered._replace(image=seen, image_positions=placed)
        x = (image + 0.1 * positions).expand(buckets, -1, -1)
        for layer in self.layers:
            x = layer(x, image, whole)
        made: Tensor = self.norm(x)
        return made
