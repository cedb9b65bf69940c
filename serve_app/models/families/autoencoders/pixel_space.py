"""The autoencoder of models that work on pixels: latents are the pixels themselves.

Source: `pixel_space` of ComfyUI 0.33.0's VAELoader. A file of it has one number, which is a mark alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from serve_app.models.families.family import Located, VaeFamily, marked
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.store.models.kinds import VAE_PREFIXES

_MARK = "pixel_space_vae"


@dataclass(frozen=True, slots=True)
class PixelSpace(VaeFamily):
    """The identity between pixels and latents in −1…1."""

    latent_channels: int = 3
    image_channels: int = 3

    @property
    def factor(self) -> int:
        return 1

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        found = marked(files[0], VAE_PREFIXES, (_MARK,)) if len(files) == 1 else None
        if found is not None:
            yield Located(cls(), found[1], prefix=found[0])

    def table(self, tensors: Tensors | None = None) -> Table:
        return {_MARK: _MARK}

    def build(self) -> nn.Module:
        module = nn.Module()
        module.register_parameter(_MARK, nn.Parameter(torch.ones(())))
        return module

    def decode(self, network: Any, latents: Tensor) -> Tensor:
        return latents

    def encode(self, network: Any, pixels: Tensor) -> Tensor:
        return pixels
