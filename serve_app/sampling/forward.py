"""What a network is asked: pieces of rows at one noise level each, and who answers them.

A piece belongs to one run; a forward holds pieces of many runs. Nothing here knows a network or the loop that runs it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from serve_app.sampling.latents import LatentFormat
from serve_app.sampling.levels import Levels

Area = tuple[int, int, int, int]
"""(height, width, y, x) in latent cells."""


@dataclass(frozen=True, slots=True, eq=False)
class Canvas:
    """What a run samples. latents, noise: (B,C,h,w) as the network sees them; mask: (B,1,h,w), 1 where to sample."""

    latents: Tensor
    noise: Tensor
    mask: Tensor | None = None

    @property
    def rows(self) -> int:
        return self.latents.shape[0]


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """What a network is told beside x and sigma, for B rows.

    context: (B,T,D), the text. vector: (B,A), added to the time embedding. concat: (B,C,h,w), channels beside x.
    controls: what steers it from outside, for the backbone that made these inputs to read.
    """

    context: Tensor
    vector: Tensor | None = None
    concat: Tensor | None = None
    controls: tuple[Any, ...] = ()

    def within(self, area: Area | None) -> Inputs:
        """Return the inputs of an area of the canvas."""
        if area is None or self.concat is None:
            return self
        return replace(self, concat=crop(self.concat, area))


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Rows that one entry of a conditioning asks for. x: (B,C,h,w), all at sigma, beside B rows of inputs.

    backbone: what answers it; pieces whose backbones have equal keys may share a forward.
    """

    backbone: Backbone
    x: Tensor
    sigma: float
    inputs: Inputs

    @property
    def rows(self) -> int:
        """How many rows of a forward it takes."""
        return self.x.shape[0]


class Backbone(Protocol):
    """A denoising network on a device, as one recipe has it.

    key: equal for backbones whose pieces may share a forward.
    """

    @property
    def key(self) -> Hashable: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def levels(self) -> Levels: ...

    @property
    def latent_format(self) -> LatentFormat: ...

    def inputs(self, cond: Tensor, options: Mapping[str, Any], role: str, canvas: Canvas) -> Inputs:
        """Return what an entry of a conditioning tells the network, for every row of the canvas.

        cond: (N,T,D). options: the entry's. role: "positive", "negative", …: which branch of the guidance it is in.
        """
        ...

    def denoise(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """Return each piece's D(x, sigma), float32, shaped as its x, from one forward.

        The pieces' backbones have this one's key and their x equal shapes (C,h,w).
        """
        ...


def crop(rows: Tensor, area: Area) -> Tensor:
    """Return the area of (B,C,h,w)."""
    height, width, y, x = area
    return rows[..., y : y + height, x : x + width]


def to_batch(rows: Tensor, batch: int) -> Tensor:
    """Return rows (N,…) as (batch,…): one is shared by all, several are repeated in turn and cut."""
    if rows.shape[0] == batch:
        return rows
    if rows.shape[0] == 1:
        return rows.expand(batch, *rows.shape[1:])
    return rows.repeat(-(-batch // rows.shape[0]), *(1,) * (rows.ndim - 1))[:batch]
