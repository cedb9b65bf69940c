"""The layers of LTX-2's autoencoders of videos, and the encoder that all of them have.

The metadata of a file lists its blocks. The layers are those of diffusers' AutoencoderKLLTX2Video. Source: HaCohen et
al. 2026, arXiv:2601.03233.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx2 import (
    LTX2VideoCausalConv3d,
    LTX2VideoDownsampler3d,
    LTX2VideoResnetBlock3d,
    PerChannelRMSNorm,
)
from torch import Tensor, nn
from torch.nn.functional import silu

from serve_app.models.files.tensors import Tensors

Blocks: TypeAlias = tuple[tuple[str, int], ...]
"""Kinds of blocks, each with its number of layers, or with what it multiplies or divides channels by."""

PATCH = 4
"""Pixels along each side that are merged into one, as channels."""
FRAMES = 8
"""Images that a latent frame covers."""
STRIDES = {"all": (2, 2, 2), "space": (1, 2, 2), "time": (2, 1, 1)}
"""By how much blocks change frames, rows and columns, by what they compress."""
LAYERS = "res_x"
DOWN = {f"compress_{what}_res": stride for what, stride in STRIDES.items()}
UP = {f"compress_{what}": stride for what, stride in STRIDES.items()}


def factor_of(blocks: Blocks) -> int:
    """Return the pixels that a latent cell of an encoder covers along one side."""
    factor = PATCH
    for kind, _ in blocks:
        factor *= DOWN[kind][1] if kind in DOWN else 1
    return factor


def encoder(blocks: Blocks, image_channels: int, width: int, made: int, padding: str) -> nn.Module:
    """Return an empty encoder. width: of its finest level; made: channels that it returns."""
    layers: list[nn.Module] = []
    last = width
    for kind, number in blocks:
        if kind == LAYERS:
            layers.append(Layers(last, number, padding))
        else:
            layers.append(LTX2VideoDownsampler3d(last, last * number, DOWN[kind], padding))
            last *= number
    return Half(image_channels * PATCH**2, width, layers, "down_blocks", last, made, padding)


def encoded(network: Any, pixels: Tensor, channels: int) -> Tensor:
    """Return the mean latents (B,channels,T,h,w) of pixels, normalised; images beyond 8k + 1 are left out."""
    kept = max(1, 1 + (pixels.shape[2] - 1) // FRAMES * FRAMES)
    made = network.encoder(patched(pixels[:, :, :kept]), causal=True)[:, :channels]
    spread, mean = (part.to(made).view(-1, 1, 1, 1) for part in (network.spread, network.mean))
    latents: Tensor = (made - mean) / spread
    return latents


class Layers(nn.Module):
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


class Half(nn.Module):
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


def blocks_of(tensors: Tensors, given: Any, known: Mapping[str, Any]) -> Blocks:
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
        usual = 2 if kind in DOWN else 1
        found.append((kind, int(settings["num_layers"] if kind == LAYERS else settings.get("multiplier", usual))))
    if not found:
        raise tensors.unsupported("holds an LTX VAE whose metadata lists no blocks")
    return tuple(found)


def patched(pixels: Tensor) -> Tensor:
    """Return images (B,C,F,H,W) with squares of pixels as channels, (B,C·16,F,H/4,W/4): column by column."""
    squares = torch.unflatten(torch.unflatten(pixels, 4, (-1, PATCH)), 3, (-1, PATCH))
    return squares.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def unpatched(squares: Tensor) -> Tensor:
    """Undo `patched`."""
    pixels = torch.unflatten(squares, 1, (-1, PATCH, PATCH)).permute(0, 1, 4, 5, 3, 6, 2)
    return pixels.flatten(5, 6).flatten(3, 4)
