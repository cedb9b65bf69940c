"""unCLIP: UNets that also read image features. SD 2.1 unCLIP, for CLIP's ViT-L or ViT-H.

The features are noised first, and the network reads how much. Sources: Ramesh et al. 2022, arXiv:2204.06125; Stability
AI 2023, Stable Diffusion 2.1 unCLIP; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import cos, pi
from typing import Any

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.models.families.unet.sd import Sd
from serve_app.models.families.unet.unet import sinusoids
from serve_app.sampling.forward import Canvas

MERGED_NOISE = 0.05
"""Noise level at which SD 2.1 unCLIP noises the sum of several images' features again.

SDXL adds none; a conditioning's "unclip_noise_augment_merge" overrides it for the former.
"""
_VECTORS = {768: 1536, 1024: 2048}
"""Width of the vector by the features' width: its other half embeds their noise level."""
_READS = {768: "CLIP's ViT-L", 1024: "CLIP's ViT-H", 1280: "CLIP's ViT-bigG"}
"""The image encoders of these widths."""
_CONTEXT = 1024
_STEPS = 1000


@dataclass(frozen=True, slots=True)
class Unclip(Sd):
    """A backbone of SD 2.1 unCLIP."""

    title = "Stable Diffusion 2.1 unCLIP"

    @classmethod
    def has_widths(cls, context_dim: int, vector_dim: int) -> bool:
        # SDXL's size embeddings alone are as wide as the narrower one.
        return vector_dim == _VECTORS[768] or (context_dim, vector_dim) == (_CONTEXT, _VECTORS[1024])

    def vector(self, options: Mapping[str, Any], canvas: Canvas, role: str) -> Tensor | None:
        """Return the noised image features with their noise level, zeros for a conditioning without images.

        Errors: NodeError for another image encoder's features.
        """
        if not options.get("unclip_conditioning"):
            return torch.zeros(1, self.vector_dim)
        merged = options.get("unclip_noise_augment_merge", MERGED_NOISE)
        return image_vector(options, self.vector_dim // 2, canvas.seed, merged)


def image_vector(options: Mapping[str, Any], width: int, seed: int, merged: float = 0.0) -> Tensor:
    """Return the combined features of "unclip_conditioning", (1,2·width): the noised vector, and its level.

    seed: of the run. merged: noise level for the sum of several. Errors: NodeError for vectors of another width.
    """
    made: list[Tensor] = []
    # The same noise for each: ComfyUI seeds it so.
    generator = torch.Generator()
    for entry in options["unclip_conditioning"]:
        seen: Tensor = entry["clip_vision_output"].image_embeds
        if seen.shape[1:] != (width,):
            raise NodeError(
                f"an image's features are of shape {'×'.join(map(str, seen.shape[1:]))}; this backbone reads a "
                f"vector {width} wide, of {_READS.get(width, 'another image encoder')}"
            )
        for one in seen:
            generator.manual_seed(seed - 10)
            made.append(_noised(one.float()[None], entry["noise_augmentation"], generator) * entry["strength"])
    if len(made) == 1:
        return made[0]
    return _noised(torch.stack(made).sum(0)[:, :width], merged, generator)


def _noised(seen: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return a vector (1,D) noised at a share of the noise levels, followed by the embedded level, (1,2D)."""
    level = round((_STEPS - 1) * share)
    kept, noise = _scales()
    at = sinusoids(torch.tensor([level], dtype=torch.float32), seen.shape[1])
    drawn = torch.randn(seen.shape, generator=generator)
    return torch.cat([seen * kept[level] + drawn * noise[level], at], dim=1)


@cache
def _scales() -> tuple[Sequence[float], Sequence[float]]:
    """Return the factors of image and noise at each level.

    Source: Nichol and Dhariwal 2021, arXiv:2102.09672, equation 17.
    """
    remains = [cos((step / _STEPS + 0.008) / 1.008 * pi / 2) ** 2 for step in range(_STEPS + 1)]
    betas = torch.tensor([min(1 - b / a, 0.999) for a, b in pairwise(remains)], dtype=torch.float64)
    left = torch.cumprod(1 - betas, dim=0)
    kept, noise = left.sqrt().float(), (1 - left).sqrt().float()
    return kept.tolist(), noise.tolist()
