"""Lotus: UNets of Stable Diffusion 2 that make depth or normals of an image in one step, in their discriminative form.

The latents are the image's; the network answers with what is to be seen, and is told which of two tasks that is.
Source: He et al. 2024, arXiv:2409.18124; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from serve_app.models.families.family import File
from serve_app.models.families.unet.sd import Sd
from serve_app.recipe.training import Discrete, Training
from serve_app.sampling.forward import Canvas

_TASK = (1.0, 0.0)
"""Depth and normals, and not the image again."""
_WIDTH = 2 * len(_TASK)


@dataclass(frozen=True, slots=True)
class Lotus(Sd):
    """A backbone of Lotus."""

    title = "Lotus"
    kind = "Stable Diffusion"

    @classmethod
    def has_widths(cls, context_dim: int, vector_dim: int) -> bool:
        return vector_dim == _WIDTH

    def training(self, file: File, names: Mapping[str, str]) -> Training:
        return Discrete("img_to_img")

    def vector(self, options: Mapping[str, Any], canvas: Canvas, role: str) -> Tensor | None:
        return task()


def task() -> Tensor:
    """Return the task as sines and cosines, (1,4)."""
    angles = torch.tensor(_TASK)
    return torch.cat([angles.sin(), angles.cos()])[None]
