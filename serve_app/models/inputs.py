"""What a family's backbone is told beside the text: SDXL's vector, the channels beside x of inpainting and editing.

Pure functions of an architecture and of a conditioning's options, which are ComfyUI's. Sources: Podell et al. 2023,
arXiv:2307.01952, section 2.2; Rombach et al. 2022, arXiv:2112.10752 (inpainting); Brooks et al. 2023, arXiv:2211.09800.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import floor, log
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from serve_app.errors import NodeError
from serve_app.models.families import SIZE_WIDTH, UNetArchitecture

CELL = 8
"""Pixels a latent cell covers along one side."""

AESTHETIC_SCORE = {"negative": 2.5}
"""The refiner's score for a branch, where the conditioning has none; 6 for the others."""

_BLACK = (0.8223, -0.6876, 0.6364, 0.1380)
"""The scaled latents of a black image, which an inpainting backbone is fed where there is no image."""

_EDIT, _INPAINT = 4, 5


def vector(
    architecture: UNetArchitecture, options: Mapping[str, Any], height: int, width: int, role: str
) -> Tensor | None:
    """Return the pooled text with the embedded sizes after it, (N,A) float32, or None for a backbone that reads none.

    height, width: of the latents, which stand for the sizes the options do not give. role: the branch of the guidance,
    which the refiner's score depends on. Errors: NodeError for a conditioning without a pooled text of the right width.
    """
    if not architecture.vector_dim:
        return None
    expected = architecture.vector_dim - architecture.sizes * SIZE_WIDTH
    pooled: Tensor | None = options.get("pooled_output")
    if pooled is None or pooled.shape[-1] != expected:
        given = "no pooled output" if pooled is None else f"a pooled output {pooled.shape[-1]} wide"
        raise NodeError(
            f"the conditioning has {given}; this backbone reads one {expected} wide, as SDXL's encoders give"
        )
    rows, columns = options.get("height", height * CELL), options.get("width", width * CELL)
    sizes = [rows, columns, options.get("crop_h", 0), options.get("crop_w", 0)]
    if architecture.sizes == 6:
        sizes += [options.get("target_height", rows), options.get("target_width", columns)]
    else:
        role = options.get("prompt_type", role)
        sizes.append(options.get("aesthetic_score", AESTHETIC_SCORE.get(role, 6)))
    embedded = _embedded(torch.tensor(sizes, dtype=torch.float32)).flatten().to(pooled.device)
    return torch.cat([pooled.float(), embedded.expand(pooled.shape[0], -1)], dim=1)


def concat(
    architecture: UNetArchitecture,
    options: Mapping[str, Any],
    latents: Tensor,
    mask: Tensor | None,
    *,
    scaled_edit: bool = False,
) -> Tensor | None:
    """Return what is fed beside x, (B,C,h,w), or None for a backbone that is fed x alone.

    latents: (B,c,h,w) that the run starts from, scaled. mask: (B,1,h,w) of the run, None without one. The options'
    "concat_latent_image" (unscaled) and "concat_mask" go before them. scaled_edit: the image to edit is scaled too.
    """
    if not architecture.concat_channels:
        return None
    given: Tensor | None = options.get("concat_latent_image")
    image = None if given is None else given.to(latents.device, torch.float32)
    if architecture.concat_channels == _EDIT:
        image = torch.zeros_like(latents) if image is None else _fitted(image, latents)
        return architecture.latent_format.to_model(image) if scaled_edit else image
    mask = options.get("concat_mask", mask)
    if mask is None:
        black = torch.tensor(_BLACK, device=latents.device).view(1, -1, 1, 1)
        return torch.cat([torch.ones_like(latents[:, :1]), black.expand_as(latents)], dim=1)
    image = latents if image is None else architecture.latent_format.to_model(image)
    mask = mask[:, :1] if mask.ndim == latents.ndim else mask
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).to(latents.device, torch.float32)
    if mask.shape[-2:] != latents.shape[-2:]:
        mask = _resized(mask, latents)
    return torch.cat([_spread(mask.round(), latents.shape[0]), _fitted(image, latents)], dim=1)


def _embedded(sizes: Tensor) -> Tensor:
    """Return the sinusoidal embedding of each size, (N, SIZE_WIDTH), cosines first."""
    half = SIZE_WIDTH // 2
    frequencies = torch.exp(-log(10000) * torch.arange(half, dtype=torch.float32) / half)
    angles = sizes[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _fitted(image: Tensor, latents: Tensor) -> Tensor:
    if image.shape[1:] != latents.shape[1:]:
        image = _resized(image, latents)
    return _spread(image, latents.shape[0])


def _resized(image: Tensor, latents: Tensor) -> Tensor:
    """Return the middle of an image, in the latents' proportions, at their size."""
    (height, width), (rows, columns) = latents.shape[-2:], image.shape[-2:]
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
