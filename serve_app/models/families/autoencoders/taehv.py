"""TAEHV: tiny distilled autoencoders of videos, which decode another autoencoder's latents at a fraction of its price.

Each layer with a memory sees a frame beside the one before. A file is one network with both halves; all layouts differ
in how they fold pixels and time alone. Source: Bohan 2024, github.com/madebyollin/taehv, and LightX2V's files of the
same layers; the numbers are the published files', what each file's latents are is ComfyUI 0.33.0's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle

from serve_app.models.families.autoencoders import minimax_h3
from serve_app.models.families.autoencoders.taesd import Bend
from serve_app.models.families.family import Located, VideoVaeFamily, marked
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.sampling.latents.latent_formats import HUNYUAN_VIDEO, HUNYUAN_VIDEO_15, MINIMAX_H3
from serve_app.sampling.latents.latents import LatentFormat
from serve_app.store.models.kinds import VAE_PREFIXES

Memory: TypeAlias = dict[int, Tensor]
"""The last frame (B,1,C,h,w) that each layer with a memory has seen, by the layer's number."""

_ENCODER_WIDTH = 64
_DECODER_WIDTHS = (256, 128, 64, 64)
_BLOCKS = 3
_FACTOR = 8
"""Pixels along one side, before folding, that a latent cell covers."""
_LEAK = 0.2
_POOLS, _GROWS = ("encoder.2", "encoder.7", "encoder.12"), ("decoder.7", "decoder.13", "decoder.19")
"""The layers that merge frames, and those that split them."""
_LAST = "decoder.22.bias"
_UNSCALED = "lighttaew2_1"
"""How names of files begin whose 16 channels are an autoencoder's own latents; others' are HunyuanVideo's, scaled."""


@dataclass(frozen=True, slots=True)
class Taehv(VideoVaeFamily):
    """A tiny autoencoder of videos.

    patch: pixels along one side that are folded into channels. pools, grows: by how much each level merges and splits
    frames. scaled_for: the format whose scaled latents the network reads; None: an autoencoder's own.
    """

    latent_channels: int
    patch: int
    pools: tuple[int, ...]
    grows: tuple[int, ...]
    scaled_for: LatentFormat | None = None
    image_channels: int = 3

    @property
    def factor(self) -> int:
        return _FACTOR * self.patch

    @property
    def frames(self) -> int:  # type: ignore[override]
        return prod(self.grows)

    @property
    def signed(self) -> bool:
        """Whether the network's colours are in −1…1, not 0…1."""
        return self.latent_channels == HUNYUAN_VIDEO_15.channels

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        found = marked(files[0], VAE_PREFIXES, (_LAST,)) if len(files) == 1 else None
        if found is not None and cls.covers(found[1].shape("decoder.1.weight")[1]):
            yield Located(cls.probe(found[1]), found[1], prefix=found[0])

    @classmethod
    def covers(cls, latent_channels: int) -> bool:
        """Whether an autoencoder of latents with this number of channels is of this class."""
        return latent_channels != MINIMAX_H3.channels

    @classmethod
    def probe(cls, tensors: Tensors) -> Taehv:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        channels = tensors.shape("decoder.1.weight")[1]
        (last,) = tensors.shape(_LAST)
        pools = tuple(tensors.shape(f"{name}.conv.weight")[1] // _ENCODER_WIDTH for name in _POOLS)
        grows = tuple(
            tensors.shape(f"{name}.conv.weight")[0] // width
            for name, width in zip(_GROWS, _DECODER_WIDTHS, strict=False)
        )
        patch = {3: 1, 12: 2, 48: 4}.get(last)
        if patch is None or prod(pools) != prod(grows):
            raise tensors.unsupported(
                f"has a tiny video autoencoder with {last} output channels that merges {prod(pools)} frames and splits "
                f"into {prod(grows)}; supported are 3, 12 or 48 channels, and as many frames split as merged"
            )
        formats = {HUNYUAN_VIDEO_15.channels: HUNYUAN_VIDEO_15}
        if not tensors.where.strip("'").startswith(_UNSCALED):
            formats[HUNYUAN_VIDEO.channels] = HUNYUAN_VIDEO
        return cls(channels, patch, pools, grows, formats.get(channels))

    def table(self, tensors: Tensors | None = None) -> Table:
        return {"encoder": "encoder", "decoder": "decoder"}

    def build(self) -> nn.Module:
        return _Network(self)

    def decode_frames(self, network: Any, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        memory: Memory = {}
        for number, latent in enumerate(latents):
            cells = latent if self.scaled_for is None else self.scaled_for.to_model(latent)
            colours = pixel_shuffle(_run(network.decoder, cells, memory, self.hidden(number)), self.patch)
            yield (colours if self.signed else colours * 2 - 1).movedim(1, 2)

    def encode_frames(self, network: Any, pixels: Iterable[Tensor]) -> Iterator[Tensor]:
        memory: Memory = {}
        for images in pixels:
            last = images[:, :, -1:].expand(-1, -1, self.frames - images.shape[2], -1, -1)
            yield self.encoded(network, torch.cat([images, last], 2), memory)

    def latent_frames(self, count: int) -> Iterator[slice]:
        """Yield the images of each latent frame; the last has fewer where the count is no multiple."""
        for first in range(0, count, self.frames):
            yield slice(first, min(first + self.frames, count))

    def hidden(self, number: int) -> int:
        """Return how many of the first frames that latent frame `number` decodes to are no images."""
        return 0 if number else self.frames - 1

    def encoded(self, network: Any, images: Tensor, memory: Memory, blank: int = 0) -> Tensor:
        """Return the latents of images (B,3,n,H,W) in −1…1, with a number of blank frames before them."""
        colours = images if self.signed else images * 0.5 + 0.5
        frames = pad(colours, (0, 0, 0, 0, blank, 0)).movedim(1, 2)
        latents = _run(network.encoder, pixel_unshuffle(frames, self.patch).movedim(1, 2), memory).movedim(1, 2)
        return latents if self.scaled_for is None else self.scaled_for.from_model(latents)


class TaeH3(Taehv):
    """MiniMax H3's, whose videos are clips of 17 images as its autoencoder's are, each encoded by itself."""

    __slots__ = ()

    tiles_itself = True

    @classmethod
    def covers(cls, latent_channels: int) -> bool:
        return not Taehv.covers(latent_channels)

    def images_of(self, latent_frames: int) -> int:
        return minimax_h3.images_of(latent_frames)

    def latent_frames(self, count: int) -> Iterator[slice]:
        return minimax_h3.clips(count)

    def hidden(self, number: int) -> int:
        return 0 if number % minimax_h3.OF_CLIP else minimax_h3.LEAD

    def encode_frames(self, network: Any, pixels: Iterable[Tensor]) -> Iterator[Tensor]:
        before: Tensor | None = None
        for clip in pixels:
            if before is not None:
                yield before
            last = clip[:, :, -1:].expand(-1, -1, minimax_h3.CLIP - clip.shape[2], -1, -1)
            before = self.encoded(network, torch.cat([clip, last], 2), {}, minimax_h3.LEAD)
        if before is not None:
            yield before[:, :, : minimax_h3.OVERLAP]

    def encode(self, network: Any, pixels: Tensor) -> Tensor:
        if pixels.shape[2] == 1:
            return self.encoded(network, pixels, {}, minimax_h3.LEAD)
        return super().encode(network, pixels)


class _Network(nn.Module):
    """Both halves, whose layers `_run` runs."""

    def __init__(self, family: Taehv) -> None:
        super().__init__()
        activation = nn.LeakyReLU(_LEAK) if family.signed else nn.ReLU()
        colours, width = 3 * family.patch**2, _ENCODER_WIDTH
        encoder: list[nn.Module] = [_convolution(colours, width), activation]
        for merged in family.pools:
            encoder += [_Pool(width, merged), _convolution(width, width, stride=2, bias=False)]
            encoder += [_Block(width, activation) for _ in range(_BLOCKS)]
        self.encoder = nn.Sequential(*encoder, _convolution(width, family.latent_channels))
        decoder: list[nn.Module] = [Bend(), _convolution(family.latent_channels, _DECODER_WIDTHS[0]), activation]
        for split, inside, outside in zip(family.grows, _DECODER_WIDTHS, _DECODER_WIDTHS[1:], strict=False):
            decoder += [_Block(inside, activation) for _ in range(_BLOCKS)]
            decoder += [nn.Upsample(scale_factor=2), _Grow(inside, split), _convolution(inside, outside, bias=False)]
        self.decoder = nn.Sequential(*decoder, activation, _convolution(_DECODER_WIDTHS[-1], colours))


class _Block(nn.Module):
    """Three convolutions of a frame beside the one before, with a shortcut."""

    def __init__(self, width: int, activation: nn.Module) -> None:
        super().__init__()
        first, second, third = (_convolution(given, width) for given in (2 * width, width, width))
        self.conv = nn.Sequential(first, activation, second, activation, third)
        self.activation = activation

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        result: Tensor = self.activation(self.conv(torch.cat([x, before], 1)) + x)
        return result


class _Pool(nn.Module):
    """Merges a number of frames into one."""

    def __init__(self, width: int, merged: int) -> None:
        super().__init__()
        self.merged = merged
        self.conv = nn.Conv2d(width * merged, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # Frames that follow each other become channels of one.
        result: Tensor = self.conv(x.reshape(-1, self.merged * x.shape[1], *x.shape[2:]))
        return result


class _Grow(nn.Module):
    """Splits each frame into a number of them."""

    def __init__(self, width: int, split: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width * split, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(x).reshape(-1, *x.shape[1:])
        return result


def _run(layers: nn.Sequential, frames: Tensor, memory: Memory, hidden: int = 0) -> Tensor:
    """Return what layers make of frames (B,C,n,h,w) that follow those which `memory` is of: (B,m,c,H,W).

    hidden: how many of the first are left out, as soon as none that stays depends on them.
    """
    count, last = len(frames), max((i for i, layer in enumerate(layers) if isinstance(layer, _Grow)), default=-1)
    x = frames.movedim(2, 1)
    for i, layer in enumerate(layers):
        if isinstance(layer, _Block):
            before = memory.get(i)
            seen = torch.cat([torch.zeros_like(x[:, :1]) if before is None else before, x[:, :-1]], 1)
            memory[i] = x[:, -1:]
            made = layer(x.flatten(0, 1), seen.flatten(0, 1))
        else:
            made = layer(x.flatten(0, 1))
        x = made.unflatten(0, (count, -1))
        if i == last:
            x = x[:, hidden:]
    return x


def _convolution(inside: int, outside: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, padding=1, stride=stride, bias=bias)
