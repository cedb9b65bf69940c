"""The autoencoder of LTX-2's videos: a latent frame covers eight images, the first one image, a cell 32 pixels a side.

Reads the authors' file, whose metadata lists its blocks; run by the layers of diffusers' AutoencoderKLLTX2Video. Its
decoder looks ahead, so a video is decoded as a whole. Source: HaCohen et al. 2026, arXiv:2601.03233.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx2 import LTX2VideoUpsampler3d
from torch import Tensor, nn

from serve_app.models.families.autoencoders.ltx2_layers import (
    DOWN,
    LAYERS,
    PATCH,
    UP,
    Blocks,
    Half,
    Layers,
    blocks_of,
    encoded,
    encoder,
    factor_of,
    unpatched,
)
from serve_app.models.families.family import Located, VideoVaeFamily, marked
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.store.models.kinds import VAE_PREFIXES

MARKS = ("decoder.up_blocks.0.res_blocks.0.conv1.conv.weight",)


@dataclass(frozen=True, slots=True)
class Ltx2Vae(VideoVaeFamily):
    """An autoencoder of videos. width: of the encoder's finest level; decoder_width: of the decoder's first layer.

    encoder, decoder: blocks in the order in which they run; residual: for each block of the decoder, whether it adds
    its input. encoded: channels that the encoder returns, latents first. paddings: of the encoder and of the decoder,
    at the sides of an image.
    """

    frames = 8
    strips = True
    dtypes = (torch.bfloat16,)

    latent_channels: int
    width: int
    decoder_width: int
    encoder: Blocks
    decoder: Blocks
    residual: tuple[bool, ...]
    encoded: int
    paddings: tuple[str, str]
    causal: bool
    image_channels: int = 3

    @property
    def factor(self) -> int:
        return factor_of(self.encoder)

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        found = marked(files[0], VAE_PREFIXES, MARKS) if len(files) == 1 else None
        if found is not None:
            yield Located(cls.probe(found[1]), found[1], prefix=found[0])

    @classmethod
    def probe(cls, tensors: Tensors) -> Ltx2Vae:
        """Read the network's size off its tensors and metadata. Errors: ModelFileError for an unsupported variant."""
        config = tensors.config("vae")
        if not config:
            raise tensors.unsupported(
                "holds an LTX VAE without the 'config' in its metadata that lists its blocks; a published file has it"
            )
        if config.get("timestep_conditioning"):
            raise tensors.unsupported("holds a VAE of LTX-Video that decodes with noise; supported is LTX-2's")
        if config.get("norm_layer") != "pixel_norm" or config.get("patch_size") != PATCH:
            raise tensors.unsupported(
                f"holds an LTX VAE of an unknown kind; its norms are {config.get('norm_layer')!r}"
            )
        encoder = blocks_of(tensors, config.get("encoder_blocks"), DOWN)
        # The decoder's are listed from its end.
        decoder = blocks_of(tensors, config.get("decoder_blocks"), UP)[::-1]
        residual = tuple(
            bool(kind == "compress_all" and isinstance(said, Mapping) and said.get("residual"))
            for kind, said in config["decoder_blocks"][::-1]
        )
        padding = config.get("spatial_padding_mode")
        return cls(
            tensors.shape("decoder.conv_in.conv.weight")[1],
            tensors.shape("encoder.conv_in.conv.weight")[0],
            tensors.shape("decoder.conv_in.conv.weight")[0],
            encoder,
            decoder,
            residual,
            tensors.shape("encoder.conv_out.conv.weight")[0],
            (padding or "zeros", padding or "reflect"),
            bool(config.get("causal_decoder", False)),
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        return {
            "encoder": "encoder",
            "decoder": "decoder",
            "per_channel_statistics.mean-of-means": "mean",
            "per_channel_statistics.std-of-means": "spread",
        }

    def build(self) -> nn.Module:
        network = nn.Module()
        network.add_module(
            "encoder", encoder(self.encoder, self.image_channels, self.width, self.encoded, self.paddings[0])
        )
        network.add_module("decoder", self._decoder())
        for name in ("mean", "spread"):
            network.register_parameter(name, nn.Parameter(torch.empty(self.latent_channels), requires_grad=False))
        return network

    def decode(self, network: Any, latents: Tensor) -> Tensor:
        spread, mean = (part.to(latents).view(-1, 1, 1, 1) for part in (network.spread, network.mean))
        return unpatched(network.decoder(latents * spread + mean, causal=self.causal))

    def encode(self, network: Any, pixels: Tensor) -> Tensor:
        return encoded(network, pixels, self.latent_channels)

    def statistics(self, network: Any) -> tuple[Tensor, Tensor]:
        return network.mean, network.spread

    def decode_frames(self, network: Any, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        pixels = self.decode(network, torch.cat(list(latents), dim=2))
        yield pixels[:, :, :1]
        yield from torch.split(pixels[:, :, 1:], self.frames, dim=2)

    def encode_frames(self, network: Any, pixels: Iterable[Tensor]) -> Iterator[Tensor]:
        yield from torch.split(self.encode(network, torch.cat(list(pixels), dim=2)), 1, dim=2)

    def _decoder(self) -> nn.Module:
        padding, width = self.paddings[1], self.decoder_width
        blocks: list[nn.Module] = []
        for (kind, number), residual in zip(self.decoder, self.residual, strict=True):
            if kind == LAYERS:
                blocks.append(Layers(width, number, padding))
            else:
                blocks.append(LTX2VideoUpsampler3d(width, width, UP[kind], residual, number, padding))
                width //= number
        made = self.image_channels * PATCH**2
        return Half(self.latent_channels, self.decoder_width, blocks, "up_blocks", width, made, padding)
