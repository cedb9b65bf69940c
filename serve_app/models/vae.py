"""The autoencoder between images and latents.

Source: Rombach et al. 2022, arXiv:2112.10752. Latents here are the VAE's own: unscaled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from serve_app.models.families.family import VaeFamily, VideoVaeFamily
from serve_app.models.tiling import Axis, Shape, Tiles, in_passes, three_shapes
from serve_app.sampling.transfer import to_device, to_host
from serve_app.values import Tiling

Work: TypeAlias = Literal["decode", "encode"]
PieceWork: TypeAlias = Literal["decode", "encode", "decode_frames", "encode_frames"]
"""What a family does, by its method: with a batch, or with the pieces of a video."""
Pieces: TypeAlias = Callable[[PieceWork, Iterable[Tensor]], Iterator[Tensor]]
"""As `pieces`, of one VAE."""

SLICE_PIXELS = 1024 * 1024
"""A batch is decoded and encoded in slices of about this many pixels, which bounds memory."""

HOST_SLICE_PIXELS = 128 * 128
"""The limit on a CPU, which is fully used by this many pixels; more would only take memory."""


def pieces(family: VaeFamily, network: nn.Module, work: PieceWork, given: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield what a family makes of pieces, or the one tensor that it makes of one."""
    match work:
        case "decode":
            yield from (family.decode(network, latents) for latents in given)
        case "encode":
            yield from (family.encode(network, pixels) for pixels in given)
        case _:
            assert isinstance(family, VideoVaeFamily), "it has no moments"
            frames = family.decode_frames if work == "decode_frames" else family.encode_frames
            yield from frames(network, given)


class Vae:
    """A VAE on its device. network: as its family builds it. ranks: how several devices compute; None: one does."""

    def __init__(
        self,
        family: VaeFamily,
        network: nn.Module,
        ranks: Pieces | None = None,
    ) -> None:
        self.family = family
        self.network = network
        self._ranks = ranks
        self._pieces: Pieces = ranks or partial(pieces, family, network)
        parameter = next(network.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype

    def decode(self, latents: Tensor, slice_pixels: int = SLICE_PIXELS) -> Tensor:
        """Return images (B,H,W,C) in 0…1 from latents (B,c,h,w), float32 on its device.

        slice_pixels: as SLICE_PIXELS. A video autoencoder returns (B,F,H,W,C) from (B,c,T,h,w), as `by_latent_frames`
        if T > 1.
        """
        if self.is_video("decode", latents):
            return _to_the_end(self.by_latent_frames("decode", latents))
        pixels = self._decoded_in_slices(self._with_time(latents), slice_pixels)
        return ((pixels + 1) / 2).clamp_(0, 1).movedim(1, -1)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Return the mean and the deviation of its latents, on the host by `to_host`, as `VaeFamily.statistics`."""
        mean, deviation = self.family.statistics(self.network)
        return to_host(mean.float()), to_host(deviation.float())

    def picture(self, latents: Tensor) -> Tensor:
        """Return the first image of latents (B,c,h,w), or of a video's (B,c,T,h,w), as (H,W,C) uint8 on the host.

        It goes there by `to_host`.
        """
        first = self._with_time(latents[:1] if latents.ndim == 4 else latents[:1, :, :1])
        pixels = self._decoded(to_device(first, self._device).to(self._dtype)).float()
        shown = pixels[0] if pixels.ndim == 4 else pixels[0, :, 0]
        image = ((shown + 1) / 2).clamp_(0, 1).movedim(0, -1)
        return to_host(image.mul_(255).to(torch.uint8))

    def encode(self, images: Tensor, slice_pixels: int = SLICE_PIXELS) -> Tensor:
        """Return the mean latents (B,c,h,w) of images (B,H,W,C) in 0…1, float32 on its device.

        Images are cropped to a multiple of the VAE's factor, equally on both sides. A video autoencoder takes the
        images as one video and returns (1,c,T,h,w), as `by_latent_frames` if there are several; frames beyond a
        multiple are dropped.
        """
        if self.is_video("encode", images):
            return _to_the_end(self.by_latent_frames("encode", images))
        return self._encoded_in_slices(self._pixels(images), slice_pixels)

    def is_video(self, work: Work, batch: Tensor) -> bool:
        """Whether a batch is one or more videos of more than one image."""
        return self.of_videos and has_latent_frames(work, batch)

    def by_latent_frames(self, work: Work, batch: Tensor) -> Tiles:
        """Decode or encode a video one latent frame at a time; yield how many are done, and of how many.

        Only one latent frame and its images are on the device at a time; results go to the host by `to_host`.
        """
        return self._decoded_by_latent_frames(batch) if work == "decode" else self._encoded_by_latent_frames(batch)

    def decode_tiled(self, latents: Tensor, tiling: Tiling) -> Tiles:
        """Decode in passes of tiles, averaged; as a whole where the family makes tiles itself."""
        if self.family.tiles_itself:
            return (yield from self._by_itself("decode", latents))
        latents, time = self._with_time(latents), None
        if (frames := self.family.frames) and latents.shape[2] > 1 and not self.family.fades_inside:
            tile = max(2, tiling.frames // frames) if tiling.frames else latents.shape[2]
            shared = max(1, min(tile // 2, tiling.shared_frames // frames))
            time = Axis(
                tile,
                shared,
                lambda latent_frames: (latent_frames - 1) * frames + 1,
                lambda latent_frame: latent_frame * frames,
            )
        pixels = yield from in_passes(
            latents,
            self._decoded_in_slices,
            self._shapes(tiling.size // self.factor),
            tiling.overlap // self.factor,
            self.factor,
            time,
            fades_inside=self.family.fades_inside,
        )
        return pixels.add_(1).div_(2).clamp_(0, 1).movedim(1, -1)

    def encode_tiled(self, images: Tensor, tiling: Tiling) -> Tiles:
        """Encode in passes of tiles, averaged; whole where the family makes tiles itself. Cropped as `encode` does."""
        if self.family.tiles_itself:
            return (yield from self._by_itself("encode", images))
        time = None
        if (frames := self.family.frames) and len(images) > 1 and not self.family.fades_inside:
            images = images[: (len(images) - 1) // frames * frames + 1]

            def latent_frames(count: int) -> int:
                return (count - 1) // frames + 1

            tile = max(2, latent_frames(tiling.frames)) if tiling.frames else latent_frames(len(images))
            shared = max(1, min(tile // 2, latent_frames(tiling.shared_frames)))
            tile, shared = ((cells - 1) * frames + 1 for cells in (tile, shared))
            time = Axis(tile, shared, latent_frames, lambda image: image // frames)
        pixels = self._pixels(images)
        shapes = self._shapes(tiling.size)
        inside = self.family.fades_inside
        work = self._encoded_in_slices
        return (yield from in_passes(pixels, work, shapes, tiling.overlap, 1 / self.factor, time, fades_inside=inside))

    def pixels(self, work: Work, batch: Tensor) -> int:
        """Return pixels of the images of a batch that are processed at once: one, or those that one latent frame covers
        or that are decoded together.
        """
        frames = self.family.frames if self.is_video(work, batch) else 1
        if work == "encode":
            return batch.shape[1] * batch.shape[2] * frames
        frames = max(frames, min(len(batch), self._together(batch)))
        return batch.shape[-1] * batch.shape[-2] * self.factor**2 * frames

    def with_ranks(self, ranks: Pieces) -> Vae:
        """Return this VAE as one that others compute with. ranks: how."""
        return Vae(self.family, self.network, ranks)

    @property
    def alone(self) -> Vae:
        """This VAE as one that this process alone computes with."""
        return self if self._ranks is None else Vae(self.family, self.network)

    @property
    def of_videos(self) -> bool:
        """Whether this is a video autoencoder, which encodes a batch of images as one video."""
        return isinstance(self.family, VideoVaeFamily)

    @property
    def factor(self) -> int:
        """Pixels a latent cell covers along one side."""
        return self.family.factor

    def _by_itself(self, work: Work, batch: Tensor) -> Tiles:
        if self.is_video(work, batch):
            return (yield from self.by_latent_frames(work, batch))
        yield 1, 1
        return self.decode(batch) if work == "decode" else self.encode(batch)

    def _decoded(self, latents: Tensor) -> Tensor:
        return next(self._pieces("decode", [latents]))

    def _encoded(self, pixels: Tensor) -> Tensor:
        return next(self._pieces("encode", [pixels]))

    def _decoded_by_latent_frames(self, latents: Tensor) -> Tiles:
        count, _, latent_frames, *sides = latents.shape
        size = (side * self.factor for side in sides)
        images = torch.empty(
            *(count, self._videos.images_of(latent_frames), *size, self.family.image_channels),
            pin_memory=self._device.type == "cuda",
        )
        done = 0

        def next_frames(video: Tensor) -> Iterator[Tensor]:
            nonlocal done
            for latent in torch.split(video, 1, 2):
                done += 1
                yield self._given(latent)

        for i, video in enumerate(torch.split(latents, 1)):
            at = 0
            for pixels in self._pieces("decode_frames", next_frames(video)):
                shown = ((pixels[0].float() + 1) / 2).clamp_(0, 1).permute(1, 2, 3, 0).contiguous()
                # Both sides are contiguous; otherwise a copy from a GPU would synchronise.
                images[i, at : at + len(shown)].copy_(shown, non_blocking=True)
                at += len(shown)
                yield done, count * latent_frames
        return images

    def _encoded_by_latent_frames(self, images: Tensor) -> Tiles:
        latent_frames, made = [*self._videos.latent_frames(len(images))], []
        given = (self._given(self._pixels(images[latent_frame])) for latent_frame in latent_frames)
        for latent in self._pieces("encode_frames", given):
            made.append(latent.float())
            yield len(made), len(latent_frames)
        return to_host(torch.cat(made, 2))

    @property
    def _videos(self) -> VideoVaeFamily:
        assert isinstance(self.family, VideoVaeFamily), "it has no moments"
        return self.family

    def _given(self, batch: Tensor) -> Tensor:
        """Return a batch on the network's device, in its dtype and with its axes."""
        return to_device(batch, self._device).to(self._dtype)

    def _with_time(self, latents: Tensor) -> Tensor:
        """Return latents with the time axis that a video family has; an image becomes the first frame."""
        if self.family.frames:
            return latents if latents.ndim == 5 else latents.unsqueeze(2)
        return latents[:, :, 0] if latents.ndim == 5 else latents

    def _pixels(self, images: Tensor) -> Tensor:
        """Return images (B,H,W,C) cropped, in the family's channels and in −1…1: (B,C,h,w), or (1,C,B,h,w).

        A missing alpha channel becomes opaque.
        """
        rows, columns = (self._kept(size) for size in images.shape[1:3])
        channels = self.family.image_channels
        images = pad(images[:, rows, columns, :channels], (0, max(0, channels - images.shape[-1])), value=1.0)
        pixels = images.movedim(-1, 1) * 2 - 1
        return pixels.movedim(0, 1)[None] if self.family.frames else pixels

    def _shapes(self, size: int) -> list[Shape]:
        """Return the tile shape of each pass: ComfyUI makes one pass over a video."""
        return [(size, size)] if self.family.frames else three_shapes(size)

    def _kept(self, size: int) -> slice:
        over = size % self.factor
        return slice(over // 2, over // 2 + size - over)

    def _decoded_in_slices(self, latents: Tensor, slice_pixels: int = SLICE_PIXELS) -> Tensor:
        rows = self._together(latents) or self._rows(latents, self.factor**2, slice_pixels)
        return self._sliced(self._decoded, latents, rows)

    def _encoded_in_slices(self, pixels: Tensor, slice_pixels: int = SLICE_PIXELS) -> Tensor:
        return self._sliced(self._encoded, pixels, self._rows(pixels, 1, slice_pixels))

    def _sliced(self, work: Callable[[Tensor], Tensor], batch: Tensor, rows: int) -> Tensor:
        """Apply work to slices of this number of rows of a batch; the result is float32 on the device."""
        return torch.cat([work(self._given(part)).float() for part in torch.split(batch, rows)])

    def _rows(self, batch: Tensor, pixels_per_cell: int, slice_pixels: int) -> int:
        """Return how many rows of a batch are processed at once, of rows that do not depend on each other."""
        if self._device.type == "cpu":
            slice_pixels = min(slice_pixels, HOST_SLICE_PIXELS)
        return max(1, slice_pixels // (batch.shape[-1] * batch.shape[-2] * pixels_per_cell))

    def _together(self, latents: Tensor) -> int:
        """Return how many latents are decoded at once as their images depend on each other; 0 where none does."""
        if not (pixels := self.family.pixels_together):
            return 0
        return max(1, pixels // (latents.shape[-1] * latents.shape[-2] * self.factor**2))


def has_latent_frames(work: Work, batch: Tensor) -> bool:
    """Whether a batch is a video of more than one image to a video autoencoder."""
    return len(batch) > 1 if work == "encode" else batch.ndim == 5 and batch.shape[2] > 1


def _to_the_end(tiles: Tiles) -> Tensor:
    """Run a pausing generator to its end and return its value."""
    while True:
        try:
            next(tiles)
        except StopIteration as end:
            made: Tensor = end.value
            return made
