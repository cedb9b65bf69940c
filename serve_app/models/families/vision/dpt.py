"""The head of Depth Anything 3, which makes maps of a vision transformer's states: depths, confidences, the sky.

Its fusion is transformers' of Depth Anything. Source: Ranftl et al. 2021, arXiv:2103.13413.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu
from transformers.models.depth_anything.modeling_depth_anything import DepthAnythingFeatureFusionLayer

from serve_app.models.families.vision.dinov2 import PATCH

LEVELS = 4
NARROW = 32
_PLACE_SHARE = 0.1
_PLACE_BASE = 100.0


def dpt_names(prefix: str, *, sky: bool, normed: bool) -> dict[str, str]:
    """Return the names of a head in the published files, and here, under a prefix of both."""
    names = {one: one for one in ("projects", "resize_layers", *(["norm"] if normed else []))}
    parts = ["output_conv1", "output_conv2", *(f"layer{level}_rn" for level in range(1, LEVELS + 1))]
    names |= {f"scratch.{part}": part for part in [*parts, *(["sky_output_conv2"] if sky else [])]}
    for level in range(1, LEVELS + 1):
        theirs, ours = f"scratch.refinenet{level}", f"refinenet{level}"
        names[f"{theirs}.out_conv"] = f"{ours}.projection"
        for unit in (1, 2) if level < LEVELS else (2,):
            for conv in (1, 2):
                names[f"{theirs}.resConfUnit{unit}.conv{conv}"] = f"{ours}.residual_layer{unit}.convolution{conv}"
    return {f"{prefix}{theirs}": f"{prefix}{ours}" for theirs, ours in names.items()}


class DptHead(nn.Module):
    """A head. reads: width of the states; channels: of its levels; features: of their fusion; outputs: 1, or 2 with a
    confidence; placed: whether places in the image are added to what it computes with, and states normalised.
    """

    def __init__(
        self, reads: int, channels: Sequence[int], features: int, *, outputs: int, sky: bool, placed: bool
    ) -> None:
        super().__init__()
        self.placed, self.sky, self.confident = placed, sky, outputs > 1
        if placed:
            self.norm = nn.LayerNorm(reads)
        self.projects = nn.ModuleList(nn.Conv2d(reads, width, 1) for width in channels)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(channels[0], channels[0], 4, stride=4),
                nn.ConvTranspose2d(channels[1], channels[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(channels[3], channels[3], 3, stride=2, padding=1),
            ]
        )
        for level, width in enumerate(channels, 1):
            setattr(self, f"layer{level}_rn", nn.Conv2d(width, features, 3, padding=1, bias=False))
            fusion = DepthAnythingFeatureFusionLayer(SimpleNamespace(fusion_hidden_size=features))
            if level == LEVELS:
                # Nothing is beneath the last level.
                fusion.residual_layer1 = nn.Identity()
            setattr(self, f"refinenet{level}", fusion)
        self.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.output_conv2 = _last(features // 2, outputs)
        if sky:
            self.sky_output_conv2 = _last(features // 2, 1)

    def forward(self, states: Sequence[Tensor], height: int, width: int) -> dict[str, Tensor]:
        """Return maps (B,height,width) of the states (B,N,D) of four layers: of patches of images of that size."""
        rows, columns = height // PATCH, width // PATCH
        levels = []
        for level, (x, project, resize) in enumerate(zip(states, self.projects, self.resize_layers, strict=True), 1):
            x = self.norm(x) if self.placed else x
            x = project(x.transpose(1, 2).unflatten(2, (rows, columns)).contiguous())
            levels.append(getattr(self, f"layer{level}_rn")(resize(self._with_places(x, width / height))))
        x = self.get_submodule(f"refinenet{LEVELS}")(levels[-1], size=levels[-2].shape[2:])
        for level in range(LEVELS - 1, 0, -1):
            size = levels[level - 2].shape[2:] if level > 1 else None
            x = self.get_submodule(f"refinenet{level}")(x, levels[level - 1], size=size)
        x = interpolate(self.output_conv1(x), size=(rows * PATCH, columns * PATCH), mode="bilinear", align_corners=True)
        x = self._with_places(x, width / height)
        made = self.output_conv2(x)
        maps = {"depth": made[:, 0].exp()}
        if self.confident:
            maps["confidence"] = made[:, 1].exp() + 1
        if self.sky:
            maps["sky"] = relu(self.sky_output_conv2(x))[:, 0]
        return maps

    def _with_places(self, x: Tensor, aspect: float) -> Tensor:
        """Return maps (B,C,h,w) with the embedding of each place added, of an image `aspect` times as wide as high."""
        return x + _places(x, aspect).to(x.dtype) if self.placed else x


def _last(reads: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(reads, NARROW, 3, padding=1), nn.ReLU(), nn.Conv2d(NARROW, outputs, 1))


def _places(x: Tensor, aspect: float) -> Tensor:
    """Return the embeddings (C,h,w) of places whose corners are a diagonal of 2 apart."""
    channels, height, width = x.shape[1:]
    diagonal = (aspect**2 + 1) ** 0.5
    frequencies = 1.0 / _PLACE_BASE ** (
        torch.arange(channels // 4, dtype=torch.float32, device=x.device) / (channels / 4)
    )

    def waves(cells: int, span: float) -> Tensor:
        edge = span * (cells - 1) / cells
        places = torch.linspace(-edge, edge, cells, dtype=x.dtype, device=x.device)
        angles = frequencies[:, None] * places
        return torch.cat([angles.sin(), angles.cos()])

    across = waves(width, aspect / diagonal)[:, None, :].expand(-1, height, -1)
    down = waves(height, 1 / diagonal)[:, :, None].expand(-1, -1, width)
    return torch.cat([across, down]) * _PLACE_SHARE
