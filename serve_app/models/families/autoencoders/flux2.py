"""The autoencoder of Flux.2: a KL autoencoder with 2×2 latents merged to one and normalised by stored statistics.

Source: Black Forest Labs 2025, FLUX.2; run as diffusers' AutoencoderKLFlux2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from serve_app.models.families.autoencoders.kl import NORM_GROUPS, AutoencoderKL
from serve_app.models.families.autoencoders.kl_blocks import slimmed
from serve_app.models.families.family import Located, VaeFamily, marked
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.store.models.kinds import VAE_PREFIXES

GATHERED = 2
"""Cells along each side that are merged into one."""
EPS = 1e-4

_MARKS = ("bn.running_mean",)


@dataclass(frozen=True, slots=True)
class Flux2Vae(VaeFamily):
    """A Flux.2 autoencoder. kl: the encoder, whose decoder is as wide unless decoder_channels is set."""

    kl: AutoencoderKL
    decoder_channels: tuple[int, ...]

    @property
    def latent_channels(self) -> int:  # type: ignore[override]
        return self.kl.latent_channels * GATHERED**2

    @property
    def image_channels(self) -> int:  # type: ignore[override]
        return self.kl.image_channels

    @property
    def factor(self) -> int:
        return self.kl.factor * GATHERED

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        found = marked(files[0], VAE_PREFIXES, _MARKS) if len(files) == 1 else None
        if found is not None:
            yield Located(cls.probe(found[1]), found[1], prefix=found[0])

    @classmethod
    def probe(cls, tensors: Tensors) -> Flux2Vae:
        """Read the network's size off its tensors. Errors: ModelFileError for another layout."""
        kl = AutoencoderKL.probe(tensors)
        # A decoder's levels are narrower by one factor, that of its widest, which comes first.
        widest = tensors.shape("decoder.conv_in.weight")[0]
        return cls(kl, tuple(width * widest // kl.channels[-1] for width in kl.channels))

    def table(self, tensors: Tensors | None = None) -> Table:
        others = {"bn": "bn", "encoder.quant_conv": "quant_conv", "decoder.post_quant_conv": "post_quant_conv"}
        return {**self.kl.table(tensors), **others}

    def build(self) -> nn.Module:
        levels = len(self.kl.channels)
        network = AutoencoderKLFlux2(
            in_channels=self.kl.image_channels,
            out_channels=self.kl.image_channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=self.kl.channels,
            decoder_block_out_channels=self.decoder_channels,
            layers_per_block=self.kl.res_blocks,
            latent_channels=self.kl.latent_channels,
            norm_num_groups=NORM_GROUPS,
            use_quant_conv=self.kl.quantized,
            use_post_quant_conv=self.kl.quantized,
        )
        # Parameters move to the device with the others; diffusers has the statistics as buffers.
        network.bn = Statistics(self.latent_channels)
        return slimmed(network)

    def decode(self, network: Any, latents: Tensor) -> Tensor:
        mean, deviation = network.bn.of(latents)
        return self.kl.decode(network, pixel_shuffle(latents * deviation + mean, GATHERED))

    def encode(self, network: Any, pixels: Tensor) -> Tensor:
        latents: Tensor = pixel_unshuffle(self.kl.encode(network, pixels), GATHERED)
        mean, deviation = network.bn.of(latents)
        normed: Tensor = (latents - mean) / deviation
        return normed


class Statistics(nn.Module):
    """The mean and variance of each channel of merged latents."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.running_mean = nn.Parameter(torch.zeros(channels))
        self.running_var = nn.Parameter(torch.ones(channels))

    def of(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and deviation (C,1,1) in the latents' dtype."""
        mean, variance = (numbers.to(latents.dtype)[:, None, None] for numbers in (self.running_mean, self.running_var))
        return mean, (variance + EPS).sqrt()
