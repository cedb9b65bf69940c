"""LatentFormat: how an autoencoder's latents become what a backbone samples, and what else goes by the autoencoder.

A family has one as a value; latents on links and in files are the autoencoder's own, unscaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from serve_app.errors import NodeError

PerChannel: TypeAlias = "float | tuple[float, ...]"
"""One number for all channels, or one a channel."""


@dataclass(frozen=True, slots=True)
class PreviewMap:
    """The linear map from a sampled latent to red, green and blue in −1…1: a row a channel, and an offset."""

    rows: tuple[tuple[float, float, float], ...]
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class LatentFormat:
    """The latents of one autoencoder. Minus shift, times scale they have about unit variance, as backbones sample them.

    factor: pixels of an image a latent cell covers along one side. scale, shift: given per channel, they are 1 over the
    deviation and the mean. frames: images of a video that one latent covers along the axis of time that latents then
    have, (B,C,T,h,w); 0 for latents without one, (B,C,h,w). preview: shows latents without the autoencoder. tiny: how
    the names of the files of the small autoencoder begin that decodes them as well.
    """

    channels: int
    factor: int = 8
    scale: PerChannel = 1.0
    shift: PerChannel = 0.0
    frames: int = 0
    preview: PreviewMap | None = None
    tiny: str = ""

    def to_model(self, latents: Tensor) -> Tensor:
        """Return an autoencoder's latents as a backbone samples them."""
        return (latents - self._spread(self.shift, latents)) * self._spread(self.scale, latents)

    def from_model(self, x: Tensor) -> Tensor:
        """Return sampled latents as the autoencoder takes them."""
        return x / self._spread(self.scale, x) + self._spread(self.shift, x)

    def check(self, shape: Sequence[int]) -> None:
        """Errors: NodeError for the shape of latents of another number of channels or axes."""
        axes = 5 if self.frames else 4
        if len(shape) != axes or shape[1] != self.channels:
            expected = f"(batch,{self.channels},{'time,' if self.frames else ''}height,width)"
            given = ",".join(map(str, shape))
            raise NodeError(f"the latents are ({given}); this model samples latents {expected}")

    def _spread(self, numbers: PerChannel, latents: Tensor) -> Tensor | float:
        if isinstance(numbers, float | int):
            return numbers
        return torch.tensor(numbers, device=latents.device).view(-1, *(1,) * (latents.ndim - 2))
