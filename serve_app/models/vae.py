"""The autoencoder between images and latents.

Source: Rombach et al. 2022, arXiv:2112.10752. Latents here are the VAE's own: unscaled.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from serve_app.models.families.family import VaeFamily
from serve_app.models.tiling import Shape, Tiles, in_passes, three_shapes
from serve_app.sampling.transfer import brought, sent

SLICE_PIXELS = 1024 * 1024
"""A batch is worked through in slices of about so many pixels, so that its size does not bound the memory needed."""

HOST_SLICE_PIXELS = 128 * 128
"""The most on a CPU: so many keep it busy, so that more at once would take memory and save no time."""


class Vae:
    """A VAE on its device. network: as its family builds it."""

    def __init__(self, family: VaeFamily, network: nn.Module) -> None:
        self.family = family
        self.network = network
        parameter = next(network.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype

    def decode(self, latents: Tensor, slice_pixels: int = SLICE_PIXELS) -> Tensor:
        """Return images (B,H,W,C) in 0…1 from latents (B,c,h,w), float32 on its device.

        slice_pixels: as SLICE_PIXELS. An autoencoder of videos returns (B,F,H,W,C) from (B,c,T,h,w).
        """
        pixels = self._sliced(self._decoded, self._with_time(latents), self.factor**2, slice_pixels)
        return ((pixels + 1) / 2).clamp_(0, 1).movedim(1, -1)

    def picture(self, latents: Tensor) -> Tensor:
        """Return the first image of latents (B,c,h,w) as (H,W,C) uint8 on the host, as `brought` has it."""
        pixels = self._decoded(sent(self._with_time(latents[:1]), self._device).to(self._dtype)).float()
        image = ((pixels[0] + 1) / 2).clamp_(0, 1).movedim(0, -1)
        return brought(image.mul_(255).to(torch.uint8))

    def encode(self, images: Tensor, slice_pixels: int = SLICE_PIXELS) -> Tensor:
        """Return the mean latents (B,c,h,w) of images (B,H,W,C) in 0…1, float32 on its device.

        What is over a multiple of the VAE's factor is cut off, half on each side. An autoencoder of videos takes the
        images for one, and returns (1,c,T,h,w); what is over a multiple of its frames is left out.
        """
        return self._sliced(self._encoded, self._pixels(images), 1, slice_pixels)

    def decode_tiled(self, latents: Tensor, size: int, overlap: int) -> Tiles:
        """Decode in passes of tiles, averaged. size, overlap: in pixels of the image."""
        pixels = yield from in_passes(
            self._with_time(latents),
            lambda tile: self._sliced(self._decoded, tile, self.factor**2),
            self._shapes(size // self.factor),
            overlap // self.factor,
            self.factor,
        )
        return ((pixels + 1) / 2).clamp_(0, 1).movedim(1, -1)

    def encode_tiled(self, images: Tensor, size: int, overlap: int) -> Tiles:
        """Encode in passes of tiles, averaged; cropped as `encode` does. size, overlap: in pixels."""
        pixels = self._pixels(images)
        encode = lambda tile: self._sliced(self._encoded, tile, 1)  # noqa: E731
        return (yield from in_passes(pixels, encode, self._shapes(size), overlap, 1 / self.factor))

    @property
    def factor(self) -> int:
        """Pixels a latent cell covers along one side."""
        return self.family.factor

    def _decoded(self, latents: Tensor) -> Tensor:
        return self.family.decode(self.network, latents)

    def _encoded(self, pixels: Tensor) -> Tensor:
        return self.family.encode(self.network, pixels)

    def _with_time(self, latents: Tensor) -> Tensor:
        """Return latents with the axes that the family's have; of a video's, an image is the first."""
        if self.family.frames:
            return latents if latents.ndim == 5 else latents.unsqueeze(2)
        return latents[:, :, 0] if latents.ndim == 5 else latents

    def _pixels(self, images: Tensor) -> Tensor:
        """Return images (B,H,W,C) cropped, in the family's channels and in −1…1: (B,C,h,w), or (1,C,B,h,w).

        Images that do not say how opaque they are are opaque.
        """
        rows, columns = (self._kept(size) for size in images.shape[1:3])
        channels = self.family.image_channels
        images = pad(images[:, rows, columns, :channels], (0, max(0, channels - images.shape[-1])), value=1.0)
        pixels = images.movedim(-1, 1) * 2 - 1
        return pixels.movedim(0, 1)[None] if self.family.frames else pixels

    def _shapes(self, size: int) -> list[Shape]:
        """Return the shapes of a tile, one a pass: ComfyUI passes over a video once."""
        return [(size, size)] if self.family.frames else three_shapes(size)

    def _kept(self, size: int) -> slice:
        over = size % self.factor
        return slice(over // 2, over // 2 + size - over)

    def _sliced(
        self, work: Callable[[Tensor], Tensor], batch: Tensor, pixels_per_cell: int, slice_pixels: int = SLICE_PIXELS
    ) -> Tensor:
        """Return what work makes of a batch on the host, float32 on the device."""
        if self._device.type == "cpu":
            slice_pixels = min(slice_pixels, HOST_SLICE_PIXELS)
        rows = max(1, slice_pixels // (batch.shape[-1] * batch.shape[-2] * pixels_per_cell))
        parts = torch.split(batch, rows)
        return torch.cat([work(sent(part, self._device).to(self._dtype)).float() for part in parts])
