"""The adapter of Wan Fun's camera models: a camera's path, by the rays through every pixel, as additions to tokens.

Source: VideoX-Fun, 2025; He et al. 2024 (CameraCtrl), arXiv:2404.02101.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle, relu

CELL = 8
"""Pixels of a latent cell along each side."""


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.conv2(relu(self.conv1(x)))
        return changed + x


class CameraAdapter(nn.Module):
    """From rays (R,channels,F,H,W) to additions (R,width,F,h,w) to a video's patches of `patch` latent cells a side."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels * CELL**2, width, patch, patch)
        self.residual_blocks = nn.Sequential(_Residual(width))

    def forward(self, rays: Tensor) -> Tensor:
        by_frame = pixel_unshuffle(rays.movedim(2, 1).flatten(0, 1), CELL)
        made: Tensor = self.residual_blocks(self.conv(by_frame))
        return made.view(rays.shape[0], rays.shape[2], *made.shape[1:]).movedim(1, 2)
