"""The trained checkpoint as what is added to it is trained against: nothing of it learns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from serve_app.models.families import ClipText
from serve_app.models.families.text.clip import TextEncoder
from serve_app.models.families.text_family import Vectors
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.sampling.latents import latent_formats
from serve_app.sampling.schedules.levels import TableLevels
from training.autoencoder import to_pixels
from training.scenes import Array


class Frozen:
    """The three networks of a checkpoint file, in float32. vectors: what an embedding's name stands for in a text."""

    def __init__(self, checkpoint: Path, vectors: Vectors = lambda name, width, kind: None) -> None:
        file = Checkpoint(checkpoint)
        self.unet: Any = file.load("backbone")[1].float()
        self._vae: Any = file.load("vae")[1].float()
        family, text = file.load("clip")
        assert isinstance(family, ClipText)
        self._encoder = TextEncoder(family, text.float(), vectors)
        self.levels = TableLevels()

    def latents(self, pictures: Sequence[Array]) -> Tensor:
        """Return pictures as latents (N,4,h,w), scaled as the backbone sees them."""
        with torch.no_grad():
            parts = [to_pixels(pictures[i : i + 16]) for i in range(0, len(pictures), 16)]
            latents = torch.cat([self._vae.encode(p, return_dict=False)[0].mode() for p in parts])
            return latent_formats.SD.to_model(latents)

    def contexts(self, texts: Sequence[str]) -> Tensor:
        """Return texts as the backbone reads them, (N,T,D)."""
        return torch.cat([cond for ((cond, _),) in self._encoder.encode(texts)])
