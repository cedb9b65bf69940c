"""The KL autoencoder of Stable Diffusion and of most families after it, of any width and depth.

Source: Rombach et al. 2022, arXiv:2112.10752; run as diffusers' AutoencoderKL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL as KlModule
from torch import Tensor, nn

from serve_app.models.families.autoencoders.kl_blocks import slimmed
from serve_app.models.families.family import Located, VaeFamily, marked
from serve_app.models.files.layout import Table, inside
from serve_app.models.files.tensors import Tensors
from serve_app.store.models.kinds import VAE_PREFIXES

NORM_GROUPS = 32
"""Groups of every group norm."""

_MARKS = ("decoder.conv_in.weight",)
_RES_BLOCK = {"nin_shortcut": "conv_shortcut"}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}

_OLD_DIFFUSERS_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of the attention in diffusers' files of before 2023; the others are the network's."""


@dataclass(frozen=True, slots=True)
class AutoencoderKL(VaeFamily):
    """A KL autoencoder. channels: one entry a level, finest first; each level but the last halves the resolution."""

    channels: tuple[int, ...]
    res_blocks: int
    latent_channels: int
    image_channels: int
    quantized: bool

    @property
    def factor(self) -> int:
        return int(2 ** (len(self.channels) - 1))

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        found = marked(files[0], VAE_PREFIXES, _MARKS) if len(files) == 1 else None
        if found is not None:
            yield Located(cls.probe(found[1]), found[1], prefix=found[0])

    @classmethod
    def probe(cls, tensors: Tensors) -> AutoencoderKL:
        """Read the network's size off a VAE's tensors, named as in the single file or as in diffusers.

        Errors: ModelFileError for another layout.
        """
        image_channels = tensors.shape("encoder.conv_in.weight")[1]
        down, block = ("down_blocks", "resnets") if tensors.has("encoder.down_blocks.") else ("down", "block")
        levels = [f"encoder.{down}.{i}" for i in range(tensors.count(f"encoder.{down}."))]
        if any(tensors.has(f"{level}.attn.") or tensors.has(f"{level}.attentions.") for level in levels):
            raise tensors.unsupported("has a VAE with attention inside its levels")
        return cls(
            channels=tuple(tensors.shape(f"{level}.{block}.0.conv2.weight")[0] for level in levels),
            res_blocks=tensors.count(f"encoder.{down}.0.{block}."),
            latent_channels=tensors.shape("decoder.conv_in.weight")[1],
            image_channels=image_channels,
            quantized=tensors.has("quant_conv.") or tensors.has("encoder.quant_conv."),
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        if tensors is not None and tensors.has("encoder.down_blocks."):
            return dict(_diffusers())
        return dict(_single_file(self))

    def build(self) -> nn.Module:
        levels = len(self.channels)
        vae = KlModule(
            in_channels=self.image_channels,
            out_channels=self.image_channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=self.channels,
            layers_per_block=self.res_blocks,
            latent_channels=self.latent_channels,
            norm_num_groups=NORM_GROUPS,
            use_quant_conv=self.quantized,
            use_post_quant_conv=self.quantized,
        )
        return slimmed(vae)

    def decode(self, network: Any, latents: Tensor) -> Tensor:
        pixels: Tensor = network.decode(latents, return_dict=False)[0]
        return pixels

    def encode(self, network: Any, pixels: Tensor) -> Tensor:
        latents: Tensor = network.encode(pixels, return_dict=False)[0].mode()
        return latents


def _single_file(known: AutoencoderKL) -> Iterator[tuple[str, str]]:
    yield "quant_conv", "quant_conv"
    yield "post_quant_conv", "post_quant_conv"
    last = len(known.channels) - 1
    for half in ("encoder", "decoder"):
        yield f"{half}.conv_in", f"{half}.conv_in"
        yield f"{half}.norm_out", f"{half}.conv_norm_out"
        yield f"{half}.conv_out", f"{half}.conv_out"
        yield from inside(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0", _ATTENTION)
        for i in (0, 1):
            yield from inside(f"{half}.mid.block_{i + 1}", f"{half}.mid_block.resnets.{i}", _RES_BLOCK)
    for level in range(last + 1):
        # The file counts the decoder's levels from the finest, the network from the coarsest.
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{last - level}"
        for i in range(known.res_blocks):
            yield from inside(f"encoder.down.{level}.block.{i}", f"{down}.resnets.{i}", _RES_BLOCK)
        for i in range(known.res_blocks + 1):
            yield from inside(f"decoder.up.{level}.block.{i}", f"{up}.resnets.{i}", _RES_BLOCK)
        if level != last:
            yield f"encoder.down.{level}.downsample.conv", f"{down}.downsamplers.0.conv"
        if level:
            yield f"decoder.up.{level}.upsample.conv", f"{up}.upsamplers.0.conv"


def _diffusers() -> Iterator[tuple[str, str]]:
    for name in ("quant_conv", "post_quant_conv", "encoder", "decoder"):
        yield name, name
    for half in ("encoder", "decoder"):
        attention = f"{half}.mid_block.attentions.0"
        yield from inside(attention, attention, _OLD_DIFFUSERS_ATTENTION)
