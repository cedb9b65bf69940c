"""The video autoencoder of Wan 2.2's 5B, whose latent cells cover twice as many pixels a side as Wan 2.1's.

Its levels are modules with shortcuts. Reads the authors' file; run as diffusers' AutoencoderKLWan. Source: Wan team
2025, Wan 2.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import nn

from serve_app.models.families.autoencoders import wan as wan_vae
from serve_app.models.families.family import Located, marked
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.store.models.kinds import VAE_PREFIXES

_LAST = "decoder.head.2.weight"


@dataclass(frozen=True, slots=True)
class Wan22Vae(wan_vae.WanVideos):
    """An autoencoder of videos. width, decoder_width: of the finest levels of its halves."""

    patch = 2

    width: int
    decoder_width: int
    latent_channels: int = 48
    image_channels: int = 3

    @property
    def factor(self) -> int:
        return int(self.patch * 2 ** (len(wan_vae.WIDTHS) - 1))

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        found = marked(files[0], VAE_PREFIXES, wan_vae.MARKS) if len(files) == 1 else None
        if found is not None and wan_vae.NESTED in found[1].shapes and found[1].shape(_LAST)[2] > 1:
            yield Located(cls.probe(found[1]), found[1], prefix=found[0])

    @classmethod
    def probe(cls, tensors: Tensors) -> Wan22Vae:
        """Read the network's size off its tensors."""
        width, channels = tensors.shape("encoder.conv1.weight")[:2]
        decoder_width = tensors.shape("decoder.head.0.gamma")[0]
        return cls(width, decoder_width, tensors.shape("conv2.weight")[0], channels // cls.patch**2)

    def table(self, tensors: Tensors | None = None) -> Table:
        return dict(wan_vae.levels_of_modules(len(wan_vae.WIDTHS)))

    def build(self) -> nn.Module:
        channels = self.image_channels * self.patch**2
        return wan_vae.causal(
            AutoencoderKLWan(
                base_dim=self.width,
                decoder_base_dim=self.decoder_width,
                z_dim=self.latent_channels,
                dim_mult=list(wan_vae.WIDTHS),
                num_res_blocks=wan_vae.RES_BLOCKS,
                temperal_downsample=list(wan_vae.HALVES_TIME),
                is_residual=True,
                in_channels=channels,
                out_channels=channels,
            )
        )
