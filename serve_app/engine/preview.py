"""Previews: a step's denoised latents as a small picture in red, green and blue.

One linear map per latent cell approximates decoding (ComfyUI's latent2rgb), at a fraction of its price.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle

from serve_app.engine.side_stream_pool import SideStreamPool
from serve_app.engine.timeline import Mark, Timeline
from serve_app.sampling.latents.latents import LatentFormat, PreviewMap
from serve_app.sampling.transfer import to_device, to_host


class Pictures:
    """The previews of one run, made on the side stream, one at a time: clients want the newest.

    timeline: of the forwards. pool: of the side stream.
    """

    def __init__(self, timeline: Timeline, pool: SideStreamPool) -> None:
        self._timeline = timeline.side_stream or timeline
        self._pool = pool
        self._made: tuple[Tensor | None, Mark] | None = None

    def make(self, shown: Tensor, picture_of: Callable[[Tensor], Tensor | None]) -> None:
        """Enqueue a picture of a run's latents, unless the device has not made the one before."""
        if self._made is not None and not self._made[1].done():
            return
        with self._timeline.enqueueing(), self._pool.measured():
            image = picture_of(shown)
        self._timeline.keep(shown)
        self._made = image, self._timeline.mark()

    def take(self) -> Tensor | None:
        """Return the newest picture in eight bits if the device has made it; each is returned once."""
        if self._made is None or not self._made[1].done():
            return None
        image, self._made = self._made[0], None
        return None if image is None else in_eight_bits(image)


def picture(denoised: Tensor, latent_format: LatentFormat) -> Tensor | None:
    """Return the first of latents (B,C,h,w), or the first latent frame of the first of (B,C,T,h,w), as a picture.

    It is (h,w,3) float32 on the host, as `to_host` has it, and goes beyond 0…255; larger where a cell stands for
    several pixels. None for a format without a preview map.
    """
    preview = latent_format.preview
    if preview is None:
        return None
    rows, offset = _map(preview, denoised.device)
    first = (denoised[0] if denoised.ndim == 4 else denoised[0, :, 0]).float()
    cells = first if preview.fold == 1 else pixel_shuffle(first, preview.fold)
    # Each operation runs once per step of every watched job, so the host does the rest.
    shades = torch.addmm(offset, rows, cells.flatten(1))
    return to_host(shades.view(3, *cells.shape[1:])).movedim(0, -1)


def in_eight_bits(image: Tensor) -> Tensor:
    """Return a picture on the host in uint8, clipped to black and white."""
    return image if image.dtype == torch.uint8 else image.clamp(0, 255).to(torch.uint8)


@lru_cache(maxsize=64)
def _map(preview: PreviewMap, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return a preview's rows (3,C) and offset (3,1), to 0…255, on a device.

    They are cached there: a copy for every picture would wait for the device.
    """
    rows, offset = torch.tensor(preview.rows).T, torch.tensor(preview.offset)[:, None]
    return to_device((rows * 127.5).contiguous(), device), to_device((offset + 1) * 127.5, device)
