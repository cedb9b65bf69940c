"""What a run has come to, as a small picture: a step's denoised latents in red, green and blue.

Latents nearly are pictures: one linear map a pixel shows what they hold, at a fraction of the price of decoding them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle

from serve_app.engine.side_stream_pool import BesidePool
from serve_app.engine.timeline import Mark, Timeline
from serve_app.sampling.latents.latents import LatentFormat, PreviewMap
from serve_app.sampling.transfer import to_device, to_host


class Pictures:
    """The pictures of one run, made beside forwards: the newest is what a client wants, so only one is under way.

    timeline: of the forwards. pool: of what is asked for beside them.
    """

    def __init__(self, timeline: Timeline, pool: BesidePool) -> None:
        self._timeline = timeline.beside or timeline
        self._pool = pool
        self._made: tuple[Tensor | None, Mark] | None = None

    def make(self, shown: Tensor, picture_of: Callable[[Tensor], Tensor | None]) -> None:
        """Have a picture made of what a run has come to, unless the device has not made the one before."""
        if self._made is not None and not self._made[1].done():
            return
        with self._timeline.asked(), self._pool.measured():
            image = picture_of(shown)
        self._timeline.keep(shown)
        self._made = image, self._timeline.mark()

    def take(self) -> Tensor | None:
        """Return the newest picture once the device has made it, in eight bits; each is returned once."""
        if self._made is None or not self._made[1].done():
            return None
        image, self._made = self._made[0], None
        return None if image is None else in_eight_bits(image)


def picture(denoised: Tensor, latent_format: LatentFormat) -> Tensor | None:
    """Return the first of sampled latents (B,C,h,w), or the first moment of the first of (B,C,T,h,w), as a picture.

    It is (h,w,3) float32 on the host, as `to_host` has it, and goes beyond 0…255; larger where a cell holds several
    places. None for a format without a preview map.
    """
    preview = latent_format.preview
    if preview is None:
        return None
    rows, offset = _map(preview, denoised.device)
    first = (denoised[0] if denoised.ndim == 4 else denoised[0, :, 0]).float()
    cells = first if preview.fold == 1 else pixel_shuffle(first, preview.fold)
    # Every operation is one more between two forwards for every job that is watched, so the host does the rest.
    shades = torch.addmm(offset, rows, cells.flatten(1))
    return to_host(shades.view(3, *cells.shape[1:])).movedim(0, -1)


def in_eight_bits(image: Tensor) -> Tensor:
    """Return a picture of the host in uint8, cut off at black and white."""
    return image if image.dtype == torch.uint8 else image.clamp(0, 255).to(torch.uint8)


@lru_cache(maxsize=64)
def _map(preview: PreviewMap, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return a preview's rows (3,C) and offset (3,1), to 0…255, on a device.

    There they stay: a copy for every picture would wait for it.
    """
    rows, offset = torch.tensor(preview.rows).T, torch.tensor(preview.offset)[:, None]
    return to_device((rows * 127.5).contiguous(), device), to_device((offset + 1) * 127.5, device)
