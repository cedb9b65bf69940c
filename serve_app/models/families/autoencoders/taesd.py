"""TAESD: a tiny distilled autoencoder on Stable Diffusion's scaled latents, in two files.

Source: Bohan 2023, github.com/madebyollin/taesd; the numbers of layers are the published files'.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from serve_app.models.families.family import Located, VaeFamily
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.sampling.latents.latent_formats import FLUX, FLUX2, SD, SD3, SDXL
from serve_app.sampling.latents.latents import LatentFormat

FORMATS = {latents.tiny: latents for latents in (SD, SDXL, SD3, FLUX, FLUX2)}
"""The latent formats with a published one, by the prefix of its files' names."""

_LAYERS = 20
"""Upper bound on the layers of either half."""

_WIDTH = 64
_GROUPS = 4
"""A pooled block's factor of inner width, and its number of norm groups."""
_FACTOR = 8
"""Pixels per latent cell along one side."""
_LIMIT = 3.0
"""Latents are squashed below this magnitude."""


@dataclass(frozen=True, slots=True)
class Taesd(VaeFamily):
    """A TAESD for the latents of another autoencoder."""

    latent_format: LatentFormat
    image_channels: int = 3

    @property
    def latent_channels(self) -> int:  # type: ignore[override]
        return self.latent_format.channels

    @property
    def factor(self) -> int:
        return self.latent_format.factor

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        """Yield an encoder's file and a decoder's, as TAESD is published."""
        if len(files) != 2:
            return
        name = files[0].where.strip("'").partition("_")[0]
        if name not in FORMATS:
            raise files[0].unsupported(f"is no TAESD encoder for {' or '.join(FORMATS)}")
        for number, half in enumerate(("encoder", "decoder")):
            yield Located(cls(FORMATS[name]), files[number], number, module=f"{half}.")

    def table(self, tensors: Tensors | None = None) -> Table:
        # Each half's file counts its layers; the network has them below the half's name.
        return {str(layer): str(layer) for layer in range(_LAYERS)}

    def build(self) -> nn.Module:
        return TinyVae(self.latent_format)

    def decode(self, network: Any, latents: Tensor) -> Tensor:
        pixels: Tensor = network.decode(latents)
        return pixels

    def encode(self, network: Any, pixels: Tensor) -> Tensor:
        latents: Tensor = network.encode(pixels)
        return latents


class TinyVae(nn.Module):
    """Both halves. Pixels are (B,3,H,W) in −1…1, latents (B,C,h,w) unscaled, as of the VAE that it replaces."""

    def __init__(self, latent_format: LatentFormat) -> None:
        super().__init__()
        self._format = latent_format
        self._gathered = latent_format.factor // _FACTOR
        channels, pooled = latent_format.channels // self._gathered**2, self._gathered > 1
        self.encoder = _encoder(channels, pooled)
        self.decoder = _decoder(channels, pooled)

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the latents of pixels."""
        return self._format.from_model(pixel_unshuffle(self.encoder(pixels * 0.5 + 0.5), self._gathered))

    def decode(self, latents: Tensor) -> Tensor:
        """Return the pixels of latents."""
        cells = pixel_shuffle(self._format.to_model(latents), self._gathered)
        pixels: Tensor = (self.decoder(cells) - 0.5) * 2
        return pixels


def _encoder(latent_channels: int, pooled: bool) -> nn.Module:
    layers: list[nn.Module] = [_convolution(3, _WIDTH), _Block()]
    for pools in (False, False, pooled):
        layers += [_convolution(_WIDTH, _WIDTH, stride=2, bias=False), *(_Block(pools) for _ in range(3))]
    return nn.Sequential(*layers, _convolution(_WIDTH, latent_channels))


def _decoder(latent_channels: int, pooled: bool) -> nn.Module:
    layers: list[nn.Module] = [Bend(), _convolution(latent_channels, _WIDTH), nn.ReLU()]
    for pools in (pooled, False, False):
        blocks = (_Block(pools) for _ in range(3))
        layers += [*blocks, nn.Upsample(scale_factor=2), _convolution(_WIDTH, _WIDTH, bias=False)]
    return nn.Sequential(*layers, _Block(), _convolution(_WIDTH, 3))


def _convolution(inside: int, outside: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, padding=1, stride=stride, bias=bias)


class Bend(nn.Module):
    """Squashes latents smoothly."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / _LIMIT) * _LIMIT


class _Block(nn.Module):
    """Three convolutions with a shortcut. pools: the input is first mixed by norms over the whole image."""

    def __init__(self, pools: bool = False) -> None:
        super().__init__()
        self.pool = _pool() if pools else None
        inner = (_convolution(_WIDTH, _WIDTH) for _ in range(3))
        first, second, third = inner
        self.conv = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        result: Tensor = (self.conv(x) + x).relu()
        return result


def _pool() -> nn.Module:
    wide = _WIDTH * _GROUPS
    into, out = nn.Conv2d(_WIDTH, wide, 1, bias=False), nn.Conv2d(wide, _WIDTH, 1, bias=False)
    return nn.Sequential(into, nn.GroupNorm(_GROUPS, wide), nn.ReLU(), out)
