"""The autoencoder of LTX-2's videos: a latent frame covers eight images, the first one image, a cell 32 pixels a side.

Reads the authors' file, whose metadata lists its blocks; run by the layers of diffusers' AutoencoderKLLTX2Video. Its
decoder looks ahead, so a video is decoded as a whole. Source: HaCohen et al. 2026, arXiv:2601.03233.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx2 import (
    LTX2VideoCausalConv3d,
    LTX2VideoDownsampler3d,
    LTX2VideoResnetBlock3d,
    LTX2VideoUpsampler3d,
    PerChannelRMSNorm,
)
from torch import Tensor, nn
from torch.nn.functional import silu

from serve_app.models.families.family import Located, VideoVaeFamily, marked
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.store.models.kinds import VAE_PREFIXES

Blocks: TypeAlias = tuple[tuple[str, int], ...]
"""Kinds of blocks, each with its number of layers, or with what it multiplies or divides channels by."""

MARKS = ("decoder.up_blocks.0.res_blocks.0.conv1.conv.weight",)
PATCH = 4
"""Pixels along each side that are merged into one, as channels."""
STRIDES = {"all": (2, 2, 2), "space": (1, 2, 2), "time": (2, 1, 1)}
"""By how much blocks change frames, rows and columns, by what they compress."""
LAYERS = "res_x"
_DOWN = {f"compress_{what}_res": stride for what, stride in STRIDES.items()}
_UP = {f"compress_{what}": stride for what, stride in STRIDES.items()}


@dataclass(frozen=True, slots=True)
class Ltx2Vae(VideoVaeFamily):
    """An autoencoder of videos. width: of the encoder's finest level; decoder_width: of the decoder's first layer.

    encoder, decoder: blocks in the order in which they run; residual: for each block of the decoder, whether it adds
    its input. encoded: channels that the encoder returns, latents first. paddings: of the encoder and of the decoder,
    at the sides of an image.
    """

    frames = 8
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
        factor = PATCH
        for kind, _ in self.encoder:
            factor *= _DOWN[kind][1] if kind in _DOWN else 1
        return factor

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
        encoder = _blocks(tensors, config.get("encoder_blocks"), _DOWN)
        # The decoder's are listed from its end.
        decoder = _blocks(tensors, config.get("decoder_blocks"), _UP)[::-1]
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
        network.add_module("encoder", self._encoder())
        network.add_module("decoder", self._decoder())
        network.register_buffer("mean", torch.empty(self.latent_channels))
        network.register_buffer("spread", torch.empty(self.latent_channels))
        return network

    def decode(self, network: Any, latents: Tensor) -> Tensor:
        spread, mean = (part.to(latents).view(-1, 1, 1, 1) for part in (network.spread, network.mean))
        return _unpatched(network.decoder(latents * spread + mean, causal=self.causal))

    def encode(self, network: Any, pixels: Tensor) -> Tensor:
        kept = max(1, 1 + (pixels.shape[2] - 1) // self.frames * self.frames)
        made = network.encoder(_patched(pixels[:, :, :kept]), causal=True)[:, : self.latent_channels]
        spread, mean = (part.to(made).view(-1, 1, 1, 1) for part in (network.spread, network.mean))
        latents: Tensor = (made - mean) / spread
        return latents

    def statistics(self, network: Any) -> tuple[Tensor, Tensor]:
        return network.mean, network.spread

    def decode_frames(self, network: Any, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        pixels = self.decode(network, torch.cat(list(latents), dim=2))
        yield pixels[:, :, :1]
        yield from torch.split(pixels[:, :, 1:], self.frames, dim=2)

    def encode_frames(self, network: Any, pixels: Iterable[Tensor]) -> Iterator[Tensor]:
        yield from torch.split(self.encode(network, torch.cat(list(pixels), dim=2)), 1, dim=2)

    def _encoder(self) -> nn.Module:
        padding, width = self.paddings[0], self.width
        blocks: list[nn.Module] = []
        for kind, number in self.encoder:
            if kind == LAYERS:
                blocks.append(_Layers(width, number, padding))
            else:
                blocks.append(LTX2VideoDownsampler3d(width, width * number, _DOWN[kind], padding))
                width *= number
        given = self.image_channels * PATCH**2
        return _Half(given, self.width, blocks, "down_blocks", width, self.encoded, padding)

    def _decoder(self) -> nn.Module:
        padding, width = self.paddings[1], self.decoder_width
        blocks: list[nn.Module] = []
        for (kind, number), residual in zip(self.decoder, self.residual, strict=True):
            if kind == LAYERS:
                blocks.append(_Layers(width, number, padding))
            else:
                blocks.append(LTX2VideoUpsampler3d(width, width, _UP[kind], residual, number, padding))
                width //= number
        made = self.image_channels * PATCH**2
        return _Half(self.latent_channels, self.decoder_width, blocks, "up_blocks", width, made, padding)


class _Layers(nn.Module):
    """Residual layers of one width."""

    def __init__(self, width: int, count: int, padding: str) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(
            LTX2VideoResnetBlock3d(width, width, spatial_padding_mode=padding) for _ in range(count)
        )

    def forward(self, x: Tensor, causal: bool = True) -> Tensor:
        for layer in self.res_blocks:
            x = layer(x, causal=causal)
        return x


class _Half(nn.Module):
    """An encoder or decoder, whose blocks have the file's name."""

    def __init__(
        self, given: int, width: int, blocks: Sequence[nn.Module], name: str, last: int, made: int, padding: str
    ) -> None:
        super().__init__()
        self.conv_in = LTX2VideoCausalConv3d(given, width, 3, spatial_padding_mode=padding)
        self.add_module(name, nn.ModuleList(blocks))
        self.norm = PerChannelRMSNorm()
        self.conv_out = LTX2VideoCausalConv3d(last, made, 3, spatial_padding_mode=padding)
        self._name = name

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        x = self.conv_in(x, causal=causal)
        for block in getattr(self, self._name):
            x = block(x, causal=causal)
        made: Tensor = self.conv_out(silu(self.norm(x)), causal=causal)
        return made


def _blocks(tensors: Tensors, given: Any, known: Mapping[str, Any]) -> Blocks:
    """Return blocks as the metadata lists them. Errors: ModelFileError for an unknown kind."""
    found = []
    for kind, said in given or ():
        if kind != LAYERS and kind not in known:
            raise tensors.unsupported(
                f"holds an LTX VAE with a block {kind!r}; supported are {', '.join((LAYERS, *known))}"
            )
        settings = said if isinstance(said, Mapping) else {"num_layers": said}
        if settings.get("inject_noise"):
            raise tensors.unsupported("holds a VAE of LTX-Video that adds noise; supported is LTX-2's")
        usual = 2 if kind in _DOWN else 1
        found.append((kind, int(settings["num_layers"] if kind == LAYERS else settings.get("multiplier", usual))))
    if not found:
        raise tensors.unsupported("holds an LTX VAE whose metadata lists no blocks")
    return tuple(found)


def _patched(pixels: Tensor) -> Tensor:
    """Return images (B,C,F,H,W) with squares of pixels as channels, (B,C·16,F,H/4,W/4): column by column."""
    squares = torch.unflatten(torch.unflatten(pixels, 4, (-1, PATCH)), 3, (-1, PATCH))
    return squares.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def _unpatched(squares: Tensor) -> Tensor:
    """Undo `_patched`."""
    pixels = torch.unflatten(squares, 1, (-1, PATCH, PATCH)).permute(0, 1, 4, 5, 3, 6, 2)
    return pixels.flatten(5, 6).flatten(3, 4)
