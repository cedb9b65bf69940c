"""What a run has come to, as a small picture: a step's denoised latents in red, green and blue.

Latents nearly are pictures: one linear map a pixel shows what they hold, at a fraction of the price of decoding them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from serve_app.sampling.latents import LatentFormat
from serve_app.values import Recipe


def tiny_vae(latent_format: LatentFormat) -> Recipe | None:
    """Return the small autoencoder that decodes latents of a format well enough to look at, if there is one."""
    if not latent_format.tiny:
        return None
    halves = (f"{latent_format.tiny}_{half}.safetensors" for half in ("encoder", "decoder"))
    return Recipe("vae", "vae_approx", next(halves), beside=tuple(halves))


def picture(denoised: Tensor, latent_format: LatentFormat) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
    """Return the first of sampled latents (B,C,h,w) as (h,w,3) in 0…255; None for a format without a preview map."""
    preview = latent_format.preview
    if preview is None or denoised.ndim != 4:
        return None
    rows, offset = (torch.tensor(numbers, device=denoised.device) for numbers in (preview.rows, preview.offset))
    rgb = denoised[0].float().movedim(0, -1) @ rows + offset
    shown = ((rgb + 1) / 2).clamp(0, 1).mul(255).to("cpu", torch.uint8)
    found: np.ndarray[Any, np.dtype[np.uint8]] = shown.numpy()
    return found
