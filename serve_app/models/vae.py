"""The autoencoder between images and latents.

Source: Rombach et al. 2022, arXiv:2112.10752. Latents here are the VAE's own: unscaled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from serve_app.models.families.family import VaeFamily, VideoVaeFamily
from serve_app.models.tiling import Axis, Shape, Tiles, in_passes, three_shapes
from serve_app.sampling.transfer import brought, sent
from serve_app.values import Tiling

Work: TypeAlias = Literal["decode", "encode"]

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

        slice_pixels: as SLICE_PIXELS. An autoencoder of videos returns (B,F,H,W,C) from (B,c,T,h,w), as `by_moments`
        where T is more than 1.
        """
        if self.is_video("decode", latents):
            return _to_the_end(self.by_moments("decode", latents))
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
        images for one, and returns (1,c,T,h,w), as `by_moments` for several; what is over a multiple of its frames is
        left out.
        """
        if self.is_video("encode", images):
            return _to_the_end(self.by_moments("encode", images))
        return self._sliced(self._encoded, self._pixels(images), 1, slice_pixels)

    def is_video(self, work: Work, batch: Tensor) -> bool:
        """Whether a batch is a video of more than an image, or several such."""
        return self.of_videos and has_moments(work, batch)

    def by_moments(self, work: Work, batch: Tensor) -> Tiles:
        """Do a video's work a latent after another, with what it stands for; yield how many are done, and of how many.

        What is made is on the host, as `brought` has it. The images of one latent are on the device at a time.
        """
        return self._decoded_by_moments(batch) if work == "decode" else self._encoded_by_moments(batch)

    def decode_tiled(self, latents: Tensor, tiling: Tiling) -> Tiles:
        """Decode in passes of tiles, averaged."""
        latents, time = self._with_time(latents), None
        if (frames := self.family.frames) and latents.shape[2] > 1:
            tile = max(2, tiling.frames // frames) if tiling.frames else latents.shape[2]
            shared = max(1, min(tile // 2, tiling.shared_frames // frames))
            time = Axis(tile, shared, lambda moments: (moments - 1) * frames + 1, lambda moment: moment * frames)
        pixels = yield from in_passes(
            latents,
            lambda tile: self._sliced(self._decoded, tile, self.factor**2),
            self._shapes(tiling.size // self.factor),
            tiling.overlap // self.factor,
            self.factor,
            time,
        )
        return pixels.add_(1).div_(2).clamp_(0, 1).movedim(1, -1)

    def encode_tiled(self, images: Tensor, tiling: Tiling) -> Tiles:
        """Encode in passes of tiles, averaged; cropped as `encode` does."""
        time = None
        if (frames := self.family.frames) and len(images) > 1:
            images = images[: (len(images) - 1) // frames * frames + 1]

            def moments(count: int) -> int:
                return (count - 1) // frames + 1

            tile = max(2, moments(tiling.frames)) if tiling.frames else moments(len(images))
            shared = max(1, min(tile // 2, moments(tiling.shared_frames)))
            tile, shared = ((cells - 1) * frames + 1 for cells in (tile, shared))
            time = Axis(tile, shared, moments, lambda image: image // frames)
        pixels = self._pixels(images)
        encode = lambda tile: self._sliced(self._encoded, tile, 1)  # noqa: E731
        return (yield from in_passes(pixels, encode, self._shapes(tiling.size), tiling.overlap, 1 / self.factor, time))

    def pixels(self, work: Work, batch: Tensor) -> int:
        """Return how many pixels each image of a batch has; of a video, those images that a latent stands for."""
        frames = self.family.frames if self.is_video(work, batch) else 1
        if work == "encode":
            return batch.shape[1] * batch.shape[2] * frames
        return batch.shape[-1] * batch.shape[-2] * self.factor**2 * frames

    @property
    def of_videos(self) -> bool:
        """Whether it is one of videos: images that are encoded together become one."""
        return isinstance(self.family, VideoVaeFamily)

    @property
    def factor(self) -> int:
        """Pixels a latent cell covers along one side."""
        return self.family.factor

    def _decoded(self, latents: Tensor) -> Tensor:
        return self.family.decode(self.network, latents)

    def _encoded(self, pixels: Tensor) -> Tensor:
        return self.family.encode(self.network, pixels)

    def _decoded_by_moments(self, latents: Tensor) -> Tiles:
        count, _, moments, *sides = latents.shape
        size = (side * self.factor for side in sides)
        images = torch.empty(
            *(count, (moments - 1) * self.family.frames + 1, *size, self.family.image_channels),
            pin_memory=self._device.type == "cuda",
        )
        done = 0
        for i, video in enumerate(torch.split(latents, 1)):
            at = 0
            for pixels in self._videos.decode_frames(self.network, map(self._given, torch.split(video, 1, 2))):
                shown = ((pixels[0].float() + 1) / 2).clamp_(0, 1).permute(1, 2, 3, 0).contiguous()
                # Both sides are contiguous, without which a copy from a GPU waits.
                images[i, at : at + len(shown)].copy_(shown, non_blocking=True)
                at += len(shown)
                done += 1
                yield done, count * moments
        return images

    def _encoded_by_moments(self, images: Tensor) -> Tiles:
        moments, made = [*self._videos.moments(len(images))], []
        given = (self._given(self._pixels(images[moment])) for moment in moments)
        for latent in self._videos.encode_frames(self.network, given):
            made.append(latent.float())
            yield len(made), len(moments)
        return brought(torch.cat(made, 2))

    @property
    def _videos(self) -> VideoVaeFamily:
        assert isinstance(self.family, VideoVaeFamily), "it has no moments"
        return self.family

    def _given(self, batch: Tensor) -> Tensor:
        """Return a batch as the network takes it, on its device."""
        return sent(batch, self._device).to(self._dtype)

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
        parts = torch.split(batch, self._rows(batch, pixels_per_cell, slice_pixels))
        return torch.cat([work(self._given(part)).float() for part in parts])

    def _rows(self, batch: Tensor, pixels_per_cell: int, slice_pixels: int) -> int:
        """Return how many rows of a batch are worked through at once."""
        if self._device.type == "cpu":
            slice_pixels = min(slice_pixels, HOST_SLICE_PIXELS)
        return max(1, slice_pixels // (batch.shape[-1] * batch.shape[-2] * pixels_per_cell))


def has_moments(work: Work, batch: Tensor) -> bool:
    """Whether a batch is a video of more than an image to an autoencoder of videos."""
    return len(batch) > 1 if work == "encode" else batch.ndim == 5 and batch.shape[2] > 1


def _to_the_end(tiles: Tiles) -> Tensor:
    """Return what comes of work that pauses."""
    while True:
        try:
            next(tiles)
        except StopIteration as end:
            made: Tensor = end.value
            return made
