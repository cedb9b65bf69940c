"""The autoencoder between images and latents.

Source: Rombach et al. 2022, arXiv:2112.10752. Latents here are the VAE's own: unscaled.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from serve_app.models.families.family import VaeFamily
from serve_app.models.tiling import Tiles, in_passes, three_shapes

SLICE_PIXELS = 1024 * 1024
"""A batch is worked through in slices of about so many pixels, so that its size does not bound the memory needed."""


class Vae:
    """A VAE on its device. network: as its family builds it."""

    def __init__(self, family: VaeFamily, network: nn.Module) -> None:
        self.family = family
        self.network = network
        parameter = next(network.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B,H,W,C) in 0…1 from latents (B,c,h,w), float32 on the CPU."""
        pixels = self._sliced(self._decoded, latents, self.factor**2)
        return ((pixels + 1) / 2).clamp_(0, 1).movedim(1, -1)

    def encode(self, images: Tensor) -> Tensor:
        """Return the mean latents (B,c,h,w) of images (B,H,W,C) in 0…1, float32 on the CPU.

        What is over a multiple of the VAE's factor is cut off, half on each side.
        """
        rows, columns = (self._kept(size) for size in images.shape[1:3])
        pixels = images[:, rows, columns, : self.family.image_channels].movedim(-1, 1) * 2 - 1
        return self._sliced(self._encoded, pixels, 1)

    def decode_tiled(self, latents: Tensor, size: int, overlap: int) -> Tiles:
        """Decode in three passes of tiles, averaged. size, overlap: in pixels of the image."""
        pixels = yield from in_passes(
            latents,
            lambda tile: self._sliced(self._decoded, tile, self.factor**2),
            three_shapes(size // self.factor),
            overlap // self.factor,
            self.factor,
            self.family.image_channels,
        )
        return ((pixels + 1) / 2).clamp_(0, 1).movedim(1, -1)

    def encode_tiled(self, images: Tensor, size: int, overlap: int) -> Tiles:
        """Encode in three passes of tiles, averaged; cropped as `encode` does. size, overlap: in pixels."""
        rows, columns = (self._kept(side) for side in images.shape[1:3])
        pixels = images[:, rows, columns, : self.family.image_channels].movedim(-1, 1) * 2 - 1
        return (
            yield from in_passes(
                pixels,
                lambda tile: self._sliced(self._encoded, tile, 1),
                three_shapes(size),
                overlap,
                1 / self.factor,
                self.family.latent_channels,
            )
        )

    @property
    def factor(self) -> int:
        """Pixels a latent cell covers along one side."""
        return self.family.factor

    def _decoded(self, latents: Tensor) -> Tensor:
        return self.family.decode(self.network, latents)

    def _encoded(self, pixels: Tensor) -> Tensor:
        return self.family.encode(self.network, pixels)

    def _kept(self, size: int) -> slice:
        over = size % self.factor
        return slice(over // 2, over // 2 + size - over)

    def _sliced(self, work: Callable[[Tensor], Tensor], batch: Tensor, pixels_per_cell: int) -> Tensor:
        rows = max(1, SLICE_PIXELS // (batch.shape[-1] * batch.shape[-2] * pixels_per_cell))
        return torch.cat([work(part.to(self._device, self._dtype)).float().cpu() for part in torch.split(batch, rows)])
