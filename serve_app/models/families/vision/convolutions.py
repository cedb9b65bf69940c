"""The convolutions of MoGe's heads: a pyramid of residual blocks, each level twice as large as the one before.

Source: Wang et al. 2025, arXiv:2507.02546.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from serve_app.models.files.tensors import Tensors

GROUP = 32
"""Channels of a group that is normalised together."""


@dataclass(frozen=True, slots=True)
class StackShape:
    """A pyramid, by its levels. reads, widths, writes: channels; a level with writes of None passes its own on.

    blocks: residual blocks of each; transposed: whether the level is enlarged by a transposed convolution; normed:
    whether blocks normalise.
    """

    reads: tuple[int, ...]
    widths: tuple[int, ...]
    writes: tuple[int | None, ...]
    blocks: tuple[int, ...]
    transposed: tuple[bool, ...]
    normed: bool

    @classmethod
    def probe(cls, tensors: Tensors) -> StackShape:
        """Read a pyramid's shape off its tensors. Errors: ModelFileError for one without levels."""
        levels = range(tensors.count("input_blocks."))
        if not levels:
            raise tensors.unsupported("holds a pyramid of convolutions without levels")
        inputs = [tensors.shape(f"input_blocks.{i}.weight") for i in levels]
        outputs = [tensors.shapes.get(f"output_blocks.{i}.weight") for i in levels]
        return cls(
            tuple(shape[1] for shape in inputs),
            tuple(shape[0] for shape in inputs),
            tuple(None if shape is None else shape[0] for shape in outputs),
            tuple(tensors.count(f"res_blocks.{i}.") for i in levels),
            tuple(f"resamplers.{i}.0.weight" in tensors.shapes for i in levels[:-1]),
            normed="res_blocks.0.0.layers.0.weight" in tensors.shapes,
        )


class ConvStack(nn.Module):
    """A pyramid of convolutions."""

    def __init__(self, shape: StackShape) -> None:
        super().__init__()
        widths = shape.widths
        self.input_blocks = nn.ModuleList(
            nn.Conv2d(reads, width, 1) for reads, width in zip(shape.reads, widths, strict=True)
        )
        self.resamplers = nn.ModuleList(
            resampled(before, width, transposed=transposed)
            for before, width, transposed in zip(widths, widths[1:], shape.transposed, strict=False)
        )
        self.res_blocks = nn.ModuleList(
            nn.Sequential(*(residual(width, width, normed=shape.normed) for _ in range(count)))
            for width, count in zip(widths, shape.blocks, strict=True)
        )
        self.output_blocks = nn.ModuleList(
            nn.Identity() if writes is None else nn.Conv2d(width, writes, 1)
            for width, writes in zip(widths, shape.writes, strict=True)
        )

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Return what each level writes (B,C,h·2^i,w·2^i), from what each reads."""
        made: list[Tensor] = []
        x: Tensor | None = None
        for number, (level, read, blocks, write) in enumerate(
            zip(levels, self.input_blocks, self.res_blocks, self.output_blocks, strict=True)
        ):
            x = read(level) if x is None else self.resamplers[number - 1](x) + read(level)
            x = blocks(x)
            made.append(write(x))
        return made


class Residual(nn.Module):
    """Layers whose output is added to their input."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.layers(x)
        return made + x


def replicated(reads: int, writes: int) -> nn.Conv2d:
    """Return a 3×3 convolution that repeats an image's edge."""
    return nn.Conv2d(reads, writes, 3, padding=1, padding_mode="replicate")


def residual(width: int, hidden: int, *, normed: bool) -> Residual:
    """Return a residual block."""
    first: nn.Module = nn.GroupNorm(1, width) if normed else nn.Identity()
    second: nn.Module = nn.GroupNorm(max(hidden // GROUP, 1), hidden) if normed else nn.Identity()
    return Residual(first, nn.ReLU(), replicated(width, hidden), second, nn.ReLU(), replicated(hidden, width))


def resampled(reads: int, writes: int, *, transposed: bool) -> nn.Sequential:
    """Return layers that double the sides."""
    up: nn.Module = (
        nn.ConvTranspose2d(reads, writes, 2, stride=2) if transposed else nn.Upsample(scale_factor=2, mode="bilinear")
    )
    return nn.Sequential(up, replicated(writes if transposed else reads, writes))


def with_places(x: Tensor, aspect: float) -> Tensor:
    """Return maps (B,C,h,w) with two channels more: where each place is, in an image whose diagonal is 2.

    aspect: how many times as wide as high the image is.
    """
    diagonal = (1 + aspect**2) ** 0.5
    height, width = x.shape[-2:]

    def along(cells: int, span: float) -> Tensor:
        edge = span * (cells - 1) / cells
        return torch.linspace(-edge, edge, cells, dtype=x.dtype, device=x.device)

    across = along(width, aspect / diagonal).expand(height, -1)
    down = along(height, 1 / diagonal)[:, None].expand(-1, width)
    return torch.cat([x, torch.stack([across, down]).expand(len(x), -1, -1, -1)], dim=1)
