"""What a run has come to, as a small picture: a step's denoised latents in red, green and blue.

Latents nearly are pictures: one linear map a pixel shows what they hold, at a fraction of the price of decoding them.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle

from serve_app.sampling.latents import LatentFormat, PreviewMap
from serve_app.sampling.transfer import brought, sent


def picture(denoised: Tensor, latent_format: LatentFormat) -> Tensor | None:
    """Return the first of sampled latents (B,C,h,w), or the first moment of the first of (B,C,T,h,w), as a picture.

    It is (h,w,3) uint8 on the host, as `brought` has it; larger where a cell holds several places. None for a format
    without a preview map.
    """
    preview = latent_format.preview
    if preview is None:
        return None
    rows, offset = _map(preview, denoised.device)
    first = denoised[0] if denoised.ndim == 4 else denoised[0, :, 0]
    rgb = pixel_shuffle(first.float(), preview.fold).movedim(0, -1) @ rows + offset
    return brought(((rgb + 1) / 2).clamp(0, 1).mul(255).to(torch.uint8))


@lru_cache(maxsize=64)
def _map(preview: PreviewMap, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return a preview's rows and offset on a device, where they stay: a copy for every picture would wait for it."""
    return sent(torch.tensor(preview.rows), device), sent(torch.tensor(preview.offset), device)
