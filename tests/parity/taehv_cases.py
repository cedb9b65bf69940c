"""Tiny autoencoders of videos, drawn from names, and what they are asked, here and of ComfyUI: golden/taehv.npz."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.parity.dit_cases import noise, weights


@dataclass(frozen=True)
class Layout:
    """Files of a kind. latent_frames, images: of the videos that it is asked for, beside single images."""

    channels: int
    factor: int
    latent_frames: int = 3
    images: int = 6
    sixteen_bits: bool = False
    """Whether the tensor by which ComfyUI tells HunyuanVideo's files from others is in sixteen bits."""

    def latents(self, frames: int) -> Tensor:
        """Return latents of two videos."""
        return noise(f"taehv {self.channels} latents {frames}", (2, self.channels, frames, 2, 3))

    def pixels(self, count: int) -> Tensor:
        """Return images, each another."""
        return noise(f"taehv {self.channels} images {count}", (count, 2 * self.factor, self.factor, 3)).sigmoid()


LAYOUTS: Mapping[str, Layout] = {
    "taehv": Layout(16, 8, sixteen_bits=True),
    "lighttaew2_1": Layout(16, 8),
    "lighttaew2_2": Layout(48, 16),
    "lighttaehy1_5": Layout(32, 16),
    "taeltx_2": Layout(128, 32, images=11),
    "taeh3": Layout(24, 16, latent_frames=7, images=22),
}
"""By the names of the published files."""


def tensors(layout: Layout, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return weights of these names and shapes that draw few colours beyond black and white."""
    made = weights(shapes)
    if layout.channels != 32:
        made["decoder.22.bias"] += 0.5
    if layout.sixteen_bits:
        made["decoder.1.weight"] = made["decoder.1.weight"].to(torch.float16)
    return made
