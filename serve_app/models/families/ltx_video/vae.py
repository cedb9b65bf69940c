"""The autoencoder of LTX-Video 0.9 to 0.9.8; from 0.9.1 on its decoder removes a little noise as it decodes.

A latent frame covers eight images, the first one image, a cell 32 pixels a side. Which blocks a file has follows from
its tensors. The layers are those of LTX-2's. ComfyUI's noise is of no seed; here it is the same each time. Source:
HaCohen et al. 2025, arXiv:2501.00103.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx2 import (
    LTX2VideoCausalConv3d,
    LTX2VideoDownsampler3d,
    LTX2VideoResnetBlock3d,
    LTX2VideoUpsampler3d,
)
from diffusers.models.embeddings import PixArtAlphaCombinedTimestepSizeEmbeddings
from torch import Tensor, nn
from torch.nn.functional import silu

from serve_app.models.families.autoencoders.ltx2 import MARKS, Ltx2Vae
from serve_app.models.families.autoencoders.ltx2_layers import (
    DOWN,
    LAYERS,
    PATCH,
    STRIDES,
    UP,
    Blocks,
    Half,
    Layers,
    unpatched,
)
from serve_app.models.families.family import Located, marked
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.sampling.transfer import to_device
from serve_app.store.models.kinds import VAE_PREFIXES

TIMED = "decoder.last_time_embedder.timestep_embedder.linear_1.weight"
WIDER, HALVED = "res_x_y", "compress_all"
"""Kinds of blocks: a layer that changes the width, and a convolution that halves frames, rows and columns."""
NOISE, TIME = 0.025, 0.05
"""The share of noise in what is decoded, and the time that the decoder is told, where the metadata names no others."""


@dataclass(frozen=True, slots=True)
class LtxVideoVae(Ltx2Vae):
    """An autoencoder of videos. timed: its decoder reads a time. noise, time: as above."""

    strips = False

    timed: bool = False
    noise: float = NOISE
    time: float = TIME

    @property
    def factor(self) -> int:
        factor = PATCH
        for kind, _ in self.encoder:
            factor *= DOWN[kind][1] if kind in DOWN else 2 if kind == HALVED else 1
        return factor

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        found = marked(files[0], VAE_PREFIXES, MARKS) if len(files) == 1 else None
        if found is not None and (TIMED in found[1].shapes or _has(found[1], "decoder.up_blocks", "conv1")):
            yield Located(cls.probe(found[1]), found[1], prefix=found[0])

    @classmethod
    def probe(cls, tensors: Tensors) -> LtxVideoVae:
        """Read the network's size off its tensors and metadata. Errors: ModelFileError for an unsupported variant."""
        if any(name.endswith("per_channel_scale1") for name in tensors.shapes):
            raise tensors.unsupported(
                "holds a VAE of LTX-Video 0.9.1, whose layers add noise; supported are those of 0.9 and from 0.9.5 on"
            )
        config = tensors.config("vae")
        padding = config.get("spatial_padding_mode")
        decoder = _blocks(tensors, "decoder.up_blocks")
        return cls(
            tensors.shape("decoder.conv_in.conv.weight")[1],
            tensors.shape("encoder.conv_in.conv.weight")[0],
            tensors.shape("decoder.conv_in.conv.weight")[0],
            _blocks(tensors, "encoder.down_blocks"),
            decoder,
            tuple(kind in UP and multiplier > 1 for kind, multiplier in decoder),
            tensors.shape("encoder.conv_out.conv.weight")[0],
            (padding or "zeros", padding or "reflect"),
            bool(config.get("causal_decoder", False)),
            timed=TIMED in tensors.shapes,
            noise=float(config.get("decode_noise_scale", NOISE)),
            time=float(config.get("decode_timestep", TIME)),
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        table = dict(super(LtxVideoVae, self).table(tensors))
        for half, blocks in (("encoder.down_blocks", self.encoder), ("decoder.up_blocks", self.decoder)):
            for number, (kind, _) in enumerate(blocks):
                if kind == WIDER:
                    table[f"{half}.{number}.norm3.norm"] = f"{half}.{number}.norm3"
        return table

    def build(self) -> nn.Module:
        network = nn.Module()
        network.add_module("encoder", self._encoder())
        network.add_module("decoder", self._own_decoder())
        network.register_buffer("mean", torch.empty(self.latent_channels))
        network.register_buffer("spread", torch.empty(self.latent_channels))
        return network

    def decode(self, network: Any, latents: Tensor) -> Tensor:
        spread, mean = (part.to(latents).view(-1, 1, 1, 1) for part in (network.spread, network.mean))
        if not self.timed:
            return unpatched(network.decoder(latents * spread + mean, causal=self.causal))
        drawn = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        noisy = to_device(drawn, latents.device).to(latents) * self.noise + (1 - self.noise) * latents
        return unpatched(network.decoder.at_time(noisy * spread + mean, self.time, causal=self.causal))

    def _encoder(self) -> nn.Module:
        padding, width = self.paddings[0], self.width
        blocks: list[nn.Module] = []
        for kind, number in self.encoder:
            if kind == LAYERS:
                blocks.append(Layers(width, number, padding))
                continue
            made = width * number
            if kind == WIDER:
                blocks.append(LTX2VideoResnetBlock3d(width, made, spatial_padding_mode=padding))
            elif kind == HALVED:
                blocks.append(LTX2VideoCausalConv3d(width, made, 3, STRIDES["all"], spatial_padding_mode=padding))
            else:
                blocks.append(LTX2VideoDownsampler3d(width, made, DOWN[kind], padding))
            width = made
        fed = self.image_channels * PATCH**2
        return Half(fed, self.width, blocks, "down_blocks", width, self.encoded, padding)

    def _own_decoder(self) -> nn.Module:
        padding, width = self.paddings[1], self.decoder_width
        blocks: list[nn.Module] = []
        for (kind, number), residual in zip(self.decoder, self.residual, strict=True):
            if kind == LAYERS:
                blocks.append((_TimedLayers if self.timed else Layers)(width, number, padding))
            elif kind == WIDER:
                blocks.append(LTX2VideoResnetBlock3d(width, width // number, spatial_padding_mode=padding))
                width //= number
            else:
                blocks.append(LTX2VideoUpsampler3d(width, width, UP[kind], residual, number, padding))
                width //= number
        made = self.image_channels * PATCH**2
        half = _TimedHalf if self.timed else Half
        return half(self.latent_channels, self.decoder_width, blocks, "up_blocks", width, made, padding)


class _TimedLayers(nn.Module):
    """Residual layers of one width that read a time."""

    def __init__(self, width: int, count: int, padding: str) -> None:
        super().__init__()
        self.time_embedder = PixArtAlphaCombinedTimestepSizeEmbeddings(4 * width, 0)
        self.res_blocks = nn.ModuleList(
            LTX2VideoResnetBlock3d(width, width, timestep_conditioning=True, spatial_padding_mode=padding)
            for _ in range(count)
        )

    def at_time(self, x: Tensor, time: Tensor, *, causal: bool) -> Tensor:
        """Return the layers' output. time: (B,)."""
        embedded = _embedded(self.time_embedder, time, x)[..., None, None, None]
        for layer in self.res_blocks:
            x = layer(x, embedded, causal=causal)
        return x


class _TimedHalf(Half):
    """A decoder that reads a time."""

    def __init__(
        self, given: int, width: int, blocks: Sequence[nn.Module], name: str, last: int, made: int, padding: str
    ) -> None:
        super().__init__(given, width, blocks, name, last, made, padding)
        self.timestep_scale_multiplier = nn.Parameter(torch.tensor(1000.0))
        self.last_time_embedder = PixArtAlphaCombinedTimestepSizeEmbeddings(2 * last, 0)
        self.last_scale_shift_table = nn.Parameter(torch.zeros(2, last))

    def at_time(self, x: Tensor, time: float, *, causal: bool) -> Tensor:
        """Return the decoder's output at a time 0…1."""
        times = (time * self.timestep_scale_multiplier).to(x.dtype).expand(len(x))
        x = self.conv_in(x, causal=causal)
        for block in self.get_submodule("up_blocks").children():
            x = block.at_time(x, times, causal=causal) if isinstance(block, _TimedLayers) else block(x, causal=causal)
        embedded = torch.unflatten(_embedded(self.last_time_embedder, times, x), 1, (2, -1))
        shift, scale = (self.last_scale_shift_table + embedded)[..., None, None, None].unbind(dim=1)
        made: Tensor = self.conv_out(silu(self.norm(x) * (1 + scale) + shift), causal=causal)
        return made


def _embedded(embedder: Any, time: Tensor, x: Tensor) -> Tensor:
    """Return an embedding (B,W) of times (B,)."""
    made: Tensor = embedder.timestep_embedder(embedder.time_proj(time).to(x.dtype))
    return made


def _has(tensors: Tensors, half: str, layer: str) -> bool:
    """Whether a block of a half is such a layer itself."""
    return any(tensors.has(f"{half}.{number}.{layer}.") for number in range(tensors.count(f"{half}.")))


def _blocks(tensors: Tensors, half: str) -> Blocks:
    """Return the blocks of a half, in the order in which they run. Errors: ModelFileError for an unknown one."""
    found = []
    for number in range(tensors.count(f"{half}.")):
        block = f"{half}.{number}"
        if tensors.has(f"{block}.res_blocks."):
            found.append((LAYERS, tensors.count(f"{block}.res_blocks.")))
            continue
        shapes = {name: tensors.shapes.get(f"{block}.{name}.weight") for name in ("conv1.conv", "conv.conv", "conv")}
        made, fed = next((shape[:2] for shape in shapes.values() if shape is not None), (1, 1))
        if shapes["conv1.conv"] is not None:
            found.append((WIDER, max(made // fed, fed // made)))
        elif shapes["conv"] is not None:
            found.append((HALVED, 1))
        elif half.startswith("decoder") and 8 * fed % made == 0:
            found.append((HALVED, 8 * fed // made))
        elif kind := {2: "compress_time_res", 4: "compress_space_res", 8: "compress_all_res"}.get(2 * fed // made):
            found.append((kind, 2))
        else:
            raise tensors.unsupported(f"holds a VAE of LTX-Video with an unknown block '{block}'")
    return tuple(found)
