"""The channels beside x that a backbone made for inpainting or editing is fed.

Pure functions of a conditioning's options, which are ComfyUI's. Sources: Rombach et al. 2022, arXiv:2112.10752
(inpainting); Brooks et al. 2023, arXiv:2211.09800 (editing).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import floor
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from serve_app.sampling.latents import LatentFormat
from serve_app.sampling.transfer import sent

EDIT_CHANNELS, INPAINT_CHANNELS = 4, 5

_BLACK = (0.8223, -0.6876, 0.6364, 0.1380)
"""The scaled latents of a black image, which an inpainting backbone is fed where there is no image."""


def image_to_edit(options: Mapping[str, Any], latents: Tensor, scaled_as: LatentFormat | None = None) -> Tensor:
    """Return the options' "concat_latent_image" (unscaled) for latents (B,C,h,w), zeros in place of one.

    scaled_as: the format it is scaled to; None leaves it unscaled.
    """
    given: Tensor | None = options.get("concat_latent_image")
    if given is None:
        given = torch.zeros_like(latents)
    image = _fitted(sent(given, latents.device).float(), latents)
    return image if scaled_as is None else scaled_as.to_model(image)


def mask_as_channels(options: Mapping[str, Any], latents: Tensor, mask: Tensor | None, factor: int) -> Tensor:
    """Return a mask in pixels with the pixels of each latent cell as its channels, (B,factor²,h,w), row by row.

    latents: (B,C,h,w). mask: (B,1,h,w) of the run, None without one. The options' "concat_mask" goes before it; where
    there is neither, all is to be filled.
    """
    mask = options.get("concat_mask", mask)
    if mask is None:
        mask = torch.ones_like(latents[:, :1])
    mask = mask.reshape(-1, 1, *mask.shape[-2:]) if mask.ndim == 3 else mask.mean(dim=1, keepdim=True)
    height, width = latents.shape[-2:]
    pixels = _resized(sent(mask, latents.device).float(), height * factor, width * factor)
    return _spread(torch.nn.functional.pixel_unshuffle(pixels, factor), latents.shape[0])


def mask_and_image(
    options: Mapping[str, Any], latents: Tensor, mask: Tensor | None, latent_format: LatentFormat
) -> Tensor:
    """Return the mask and the masked image, (B,1+C,h,w).

    latents: (B,C,h,w) that the run starts from, scaled. mask: (B,1,h,w) of the run, None without one. The options'
    "concat_latent_image" (unscaled) and "concat_mask" go before them.
    """
    mask = options.get("concat_mask", mask)
    if mask is None:
        black = sent(torch.tensor(_BLACK), latents.device).view(1, -1, 1, 1)
        return torch.cat([torch.ones_like(latents[:, :1]), black.expand_as(latents)], dim=1)
    given: Tensor | None = options.get("concat_latent_image")
    image = latents if given is None else latent_format.to_model(sent(given, latents.device).float())
    mask = mask[:, :1] if mask.ndim == latents.ndim else mask
    mask = sent(mask.reshape(-1, 1, *mask.shape[-2:]), latents.device).float()
    if mask.shape[-2:] != latents.shape[-2:]:
        mask = _resized(mask, *latents.shape[-2:])
    return torch.cat([_spread(mask.round(), latents.shape[0]), _fitted(image, latents)], dim=1)


def _fitted(image: Tensor, latents: Tensor) -> Tensor:
    if image.shape[1:] != latents.shape[1:]:
        image = _resized(image, *latents.shape[-2:])
    return _spread(image, latents.shape[0])


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    """Return the middle of an image, in the proportions of a size, at that size."""
    rows, columns = image.shape[-2:]
    have, want = columns / rows, width / height
    x = round((columns - columns * (want / have)) / 2) if have > want else 0
    y = round((rows - rows * (have / want)) / 2) if have < want else 0
    return interpolate(image[..., y : rows - y, x : columns - x], size=(height, width), mode="bilinear")


def _spread(rows: Tensor, batch: int) -> Tensor:
    """Return rows picked at even distances, so that there are `batch` of them."""
    count = rows.shape[0]
    if batch <= 1 or count == batch:
        return rows[:batch]
    if batch < count:
        picked = [min(round(i * (count - 1) / (batch - 1)), count - 1) for i in range(batch)]
    else:
        picked = [min(floor((i + 0.5) * count / batch), count - 1) for i in range(batch)]
    return rows[picked]
