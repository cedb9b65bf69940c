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
from serve_app.nested_tensor import NestedTensor, Samples
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
    (B,C,h,w). sound: latents are of a sound, (B,C,T), and factor is of its samples. preview: shows latents without the
    autoencoder. tiny: prefix of the files of the tiny autoencoder that decodes them too; a video's is one file.
    others: formats of the parts that may be sampled with it, such as the sound of a video.
    """

    channels: int
    factor: int = 8
    scale: PerChannel = 1.0
    shift: PerChannel = 0.0
    frames: int = 0
    sound: bool = False
    preview: PreviewMap | None = None
    tiny: str = ""
    others: tuple[LatentFormat, ...] = ()

    @property
    def parts(self) -> tuple[LatentFormat, ...]:
        """The format of each part of latents, itself first."""
        return (self, *self.others)

    def to_model(self, latents: Tensor) -> Tensor:
        """Return an autoencoder's latents scaled for a backbone."""
        return (latents - self._spread(self.shift, latents)) * self._spread(self.scale, latents)

    def from_model(self, x: Tensor) -> Tensor:
        """Return a backbone's latents scaled for the autoencoder."""
        return x / self._spread(self.scale, x) + self._spread(self.shift, x)

    def accept(self, samples: Samples, factor: int | None = None) -> Samples:
        """Return latents converted to this format, to be sampled; of several parts each, which are checked only.

        Empty ones, all zero, get its channels, and if made for another factor, the size of the same image. Images get a
        time axis where the format has one. Errors: NodeError for latents of another kind.
        """
        if isinstance(samples, NestedTensor):
            self._check_parts(samples)
            return samples
        return self._accepted(samples, factor)

    def _accepted(self, latents: Tensor, factor: int | None) -> Tensor:
        shape = list(latents.shape)
        if self.sound and len(shape) == 3 and not latents.any():
            length = shape[2] if factor is None else max(1, round(shape[2] * (factor / self.factor)))
            latents = latents.new_zeros(shape[0], self.channels, length)
        elif len(shape) in (4, 5) and not self.sound and not latents.any():
            shape[1] = self.channels
            if factor is not None:
                shape[-2:] = [max(1, round(side * (factor / self.factor))) for side in shape[-2:]]
            latents = latents.new_zeros(shape)
        shape = list(latents.shape)
        if self.frames and len(shape) == 4:
            latents = latents.unsqueeze(2)
        self.check(latents.shape)
        return latents

    def check(self, shape: Sequence[int]) -> None:
        """Errors: NodeError for the shape of latents of another number of channels or axes."""
        axes = 3 if self.sound else 5 if self.frames else 4
        if len(shape) != axes or shape[1] != self.channels:
            of_one = "time" if self.sound else f"{'time,' if self.frames else ''}height,width"
            expected = f"(batch,{self.channels},{of_one})"
            given = ",".join(map(str, shape))
            raise NodeError(f"the latents are ({given}); this model samples latents {expected}")

    def _check_parts(self, samples: NestedTensor) -> None:
        if len(samples.tensors) != len(self.parts):
            raise NodeError(
                f"the latents have {len(samples.tensors)} parts; this model samples latents of "
                f"{'one part' if not self.others else f'{len(self.parts)} parts'}"
            )
        for latent_format, part in zip(self.parts, samples.tensors, strict=True):
            latent_format.check(part.shape)
        if len(rows := {len(part) for part in samples.tensors}) > 1:
            raise NodeError(f"the parts of the latents are batches of {sorted(rows)}; they must be of one size")

    def _spread(self, numbers: PerChannel, latents: Tensor) -> Tensor | float:
        if isinstance(numbers, float | int):
            return numbers
        return to_device(torch.tensor(numbers), latents.device).view(-1, *(1,) * (latents.ndim - 2))
