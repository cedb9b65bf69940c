"""The autoencoder of Qwen-Image 2.1: images with alpha.

Its layout is that of Wan 2.2's video autoencoder without weights in time. Reads ComfyUI's file; run as diffusers'
AutoencoderKLQwenImage21. Source: Qwen team 2026, Qwen-Image 2.1; Wan team 2025, arXiv:2503.20314.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl_qwenimage21 import AutoencoderKLQwenImage21
from torch import Tensor, nn

from serve_app.models.families.autoencoders import wan as wan_vae
from serve_app.models.families.family import Located, VaeFamily, marked
from serve_app.models.files.layout import Place, Table, places
from serve_app.models.files.tensors import Tensors
from serve_app.store.models.kinds import VAE_PREFIXES

WIDTHS = (1, 2, 4, 8, 8)
"""Width of each level as a multiple of the finest's; each level but the last halves the resolution."""
HALVES_TIME = (False, True, True, True)
"""The downsampling steps that also halved the number of frames: shortcuts still distinguish them."""

_LAST = "decoder.head.2.weight"


@dataclass(frozen=True, slots=True)
class QwenImage21Vae(VaeFamily):
    """An autoencoder of images. width, decoder_width: of the finest levels of its halves."""

    width: int
    decoder_width: int
    latent_channels: int = 64
    image_channels: int = 4

    @property
    def factor(self) -> int:
        return int(2 ** (len(WIDTHS) - 1))

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        found = marked(files[0], VAE_PREFIXES, (wan_vae.NESTED,)) if len(files) == 1 else None
        if found is not None and len(last := found[1].shape(_LAST)) == 5 and last[2] == 1:
            yield Located(cls.probe(found[1]), found[1], prefix=found[0])

    @classmethod
    def probe(cls, tensors: Tensors) -> QwenImage21Vae:
        """Read the network's size off its tensors."""
        width, image_channels = tensors.shape("encoder.conv1.weight")[:2]
        return cls(width, tensors.shape("decoder.head.0.gamma")[0], tensors.shape("conv2.weight")[0], image_channels)

    def table(self, tensors: Tensors | None = None) -> Table:
        table: dict[str, str | tuple[Place, ...]] = dict(wan_vae.levels_of_modules(len(WIDTHS)))
        for name, shape in () if tensors is None else tensors.shapes.items():
            if len(shape) == 5:
                # A convolution over one frame.
                table[name] = tuple(place._replace(shape=shape[:2] + shape[3:]) for place in places(name, table))
        return table

    def build(self) -> nn.Module:
        vae: nn.Module = AutoencoderKLQwenImage21(
            base_dim=self.width,
            decoder_base_dim=self.decoder_width,
            z_dim=self.latent_channels,
            dim_mult=list(WIDTHS),
            num_res_blocks=wan_vae.RES_BLOCKS,
            temperal_downsample=list(HALVES_TIME),
            in_channels=self.image_channels,
            out_channels=self.image_channels,
        )
        return vae

    def decode(self, network: Any, latents: Tensor) -> Tensor:
        pixels: Tensor = network.decode(latents[:, :, None], return_dict=False)[0]
        return pixels[:, :, 0]

    def encode(self, network: Any, pixels: Tensor) -> Tensor:
        latents: Tensor = network.encode(pixels[:, :, None], return_dict=False)[0].mode()
        return latents[:, :, 0]
