"""LatentFormat: the conversion between an autoencoder's latents and a backbone's, and other facts of the autoencoder.

A family has one as a value; latents on links and in files are the autoencoder's own, unscaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.sampling.transfer import to_device

PerChannel: TypeAlias = "float | tuple[float, ...]"
"""One number for all channels, or one for each."""


@dataclass(frozen=True, slots=True)
class PreviewMap:
    """The linear map from a latent to red, green and blue in −1…1: one row for each channel, and an offset.

    fold: a cell contains fold×fold places, each with channels of its own (channel, y, x); the map is for one place.
    """

    rows: tuple[tuple[float, float, float], ...]
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    fold: int = 1


@dataclass(frozen=True, slots=True)
class LatentFormat:
    """The latents of one autoencoder. (latents − shift) · scale has about unit variance, as backbones sample them.

    factor: pixels per latent cell along one side. scale, shift: per channel, the inverse deviation and the mean.
    frames: images of a video that one latent frame covers, for latents with a time axis, (B,C,T,h,w); 0 without,
    (B,C,h,w). preview: shows latents without the autoencoder. tiny: prefix of the files of the tiny autoencoder that
    decodes them too.
    """

    channels: int
    factor: int = 8
    scale: PerChannel = 1.0
    shift: PerChannel = 0.0
    frames: int = 0
    preview: PreviewMap | None = None
    tiny: str = ""

    def to_model(self, latents: Tensor) -> Tensor:
        """Return an autoencoder's latents scaled for a backbone."""
        return (latents - self._spread(self.shift, latents)) * self._spread(self.scale, latents)

    def from_model(self, x: Tensor) -> Tensor:
        """Return a backbone's latents scaled for the autoencoder."""
        return x / self._spread(self.scale, x) + self._spread(self.shift, x)

    def accept(self, latents: Tensor, factor: int | None = None) -> Tensor:
        """Return latents converted to this format, to be sampled.

        Empty ones, all zero, get its channels, and if made for another factor, the size of the same image. Images get a
        time axis where the format has one. Errors: NodeError for latents of another kind.
        """
        shape = list(latents.shape)
        if len(shape) in (4, 5) and not latents.any():
            shape[1] = self.channels
            if factor is not None:
                shape[-2:] = [max(1, round(side * (factor / self.factor))) for side in shape[-2:]]
            latents = latents.new_zeros(shape)
        if self.frames and len(shape) == 4:
            latents = latents.unsqueeze(2)
        self.check(latents.shape)
        return latents

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
        return to_device(torch.tensor(numbers), latents.device).view(-1, *(1,) * (latents.ndim - 2))
