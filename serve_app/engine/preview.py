"""What a run has come to, as a small picture: a step's denoised latents in red, green and blue.

Latents of Stable Diffusion nearly are pictures: one linear map a pixel shows what they hold, at a fraction of the price
of decoding them. The maps are least-squares fits to decoded images. Source: keturn 2022, "Decoding latents to RGB
without upscaling", Hugging Face forum 23204; the numbers are those that ComfyUI 0.3.64 shows its previews with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from serve_app.values import Recipe

_SD1 = (
    (0.3512, 0.2297, 0.3227),
    (0.3250, 0.4974, 0.2350),
    (-0.2829, 0.1762, 0.2721),
    (-0.2120, -0.2616, -0.7177),
)
_SDXL = (
    (0.3651, 0.4232, 0.4341),
    (-0.2533, -0.0042, 0.1068),
    (0.1076, 0.1111, -0.0362),
    (-0.3165, -0.2492, -0.2188),
)
_MAPS: Mapping[float, tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]] = {
    0.18215: (_SD1, (0.0, 0.0, 0.0)),
    0.13025: (_SDXL, (0.1084, -0.0175, -0.0011)),
}
"""The map and its offset, by the scale of the latents, which tells the autoencoders apart."""


_TINY_VAES: Mapping[float, str] = {0.18215: "taesd", 0.13025: "taesdxl"}


def tiny_vae(latent_scale: float) -> Recipe | None:
    """Return the small autoencoder that decodes latents of this scale well enough to look at."""
    name = _TINY_VAES.get(latent_scale)
    halves = f"{name}_encoder.safetensors", f"{name}_decoder.safetensors"
    return None if name is None else Recipe("vae", "vae_approx", halves[0], beside=halves[1:])


def picture(denoised: Tensor, latent_scale: float) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
    """Return the first of denoised latents (B,4,h,w), scaled, as (h,w,3) in 0…255; None for latents of another kind."""
    if latent_scale not in _MAPS or denoised.ndim != 4 or denoised.shape[1] != 4:
        return None
    factors, offset = (torch.tensor(numbers, device=denoised.device) for numbers in _MAPS[latent_scale])
    rgb = denoised[0].float().movedim(0, -1) @ factors + offset
    shown = ((rgb + 1) / 2).clamp(0, 1).mul(255).to("cpu", torch.uint8)
    found: np.ndarray[Any, np.dtype[np.uint8]] = shown.numpy()
    return found
