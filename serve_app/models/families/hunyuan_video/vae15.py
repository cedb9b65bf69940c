"""The autoencoder of HunyuanVideo 1.5: a latent frame covers four images, the first one image, a cell 16 pixels a side.

Reads the authors' file; run by the layers of diffusers' AutoencoderKLHunyuanVideo15. Source: Wu et al. 2025,
arXiv:2511.18870.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuanvideo15 import (
    HunyuanVideo15Decoder3D,
    HunyuanVideo15Encoder3D,
)
from torch import Tensor, nn
from torch.nn.functional import silu

from serve_app.models.families.family import Located, VideoVaeFamily, marked
from serve_app.models.families.hunyuan_video.causal import TOGETHER, Seen, middle
from serve_app.models.files.layout import Table, inside
from serve_app.models.files.tensors import Tensors
from serve_app.store.models.kinds import VAE_PREFIXES

MARKS = ("decoder.up.0.upsample.conv.conv.weight",)
FACTOR, FRAMES = 16, 4
RES_BLOCKS = 2

_RES_BLOCK = {"nin_shortcut": "conv_shortcut"}
_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v"}


@dataclass(frozen=True, slots=True)
class HunyuanVideo15Vae(VideoVaeFamily):
    """An autoencoder of videos. widths: of its levels, the finest first; all but the last halve the resolution."""

    frames = FRAMES
    strips = True
    dtypes = (torch.float16, torch.bfloat16)

    latent_channels: int
    widths: tuple[int, ...]
    image_channels: int = 3

    @property
    def factor(self) -> int:
        return FACTOR

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        found = marked(files[0], VAE_PREFIXES, MARKS) if len(files) == 1 else None
        if found is not None:
            yield Located(cls.probe(found[1]), found[1], prefix=found[0])

    @classmethod
    def probe(cls, tensors: Tensors) -> HunyuanVideo15Vae:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        levels = tensors.count("encoder.down.")
        widths = tuple(tensors.shape(f"encoder.down.{i}.block.0.conv1.conv.weight")[0] for i in range(levels))
        if levels != FACTOR.bit_length():
            raise tensors.unsupported(
                f"holds a VAE of HunyuanVideo's kind of {levels} levels; supported are {FACTOR.bit_length()}"
            )
        return cls(tensors.shape("decoder.conv_in.conv.weight")[1], widths)

    def table(self, tensors: Tensors | None = None) -> Table:
        return dict(_names(len(self.widths)))

    def build(self) -> nn.Module:
        network = nn.Module()
        network.encoder = HunyuanVideo15Encoder3D(
            self.image_channels, 2 * self.latent_channels, self.widths, RES_BLOCKS, FRAMES, FACTOR
        )
        network.decoder = HunyuanVideo15Decoder3D(
            self.latent_channels, self.image_channels, self.widths[::-1], RES_BLOCKS, FACTOR, FRAMES
        )
        return network

    def decode_frames(self, network: Any, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        decoder, z = network.decoder, torch.cat([*latents], dim=2)
        begun = _Seen()
        x = begun.conv(decoder.conv_in, z) + z.repeat_interleave(decoder.repeat, dim=1)
        x = middle(decoder.mid_block, x)
        seen = _Seen()
        for piece in torch.split(x, TOGETHER, dim=2):
            for block in decoder.up_blocks:
                piece = seen.blocks(block.resnets, piece)
                for up in block.upsamplers or ():
                    piece = seen.upsampled(up, piece)
            pixels = seen.conv(decoder.conv_out, silu(decoder.norm_out(piece)))
            seen = seen.after()
            yield pixels

    def encode_frames(self, network: Any, pixels: Iterable[Tensor]) -> Iterator[Tensor]:
        encoder, seen, made = network.encoder, _Seen(), []
        for piece in pixels:
            x = seen.conv(encoder.conv_in, piece)
            for block in encoder.down_blocks:
                x = seen.blocks(block.resnets, x)
                for down in block.downsamplers or ():
                    x = seen.downsampled(down, x)
            seen = seen.after()
            made.append(x)
        x = middle(encoder.mid_block, torch.cat(made, dim=2))
        around = torch.unflatten(x, 1, (-1, encoder.group_size)).mean(dim=2)
        moments = _Seen().conv(encoder.conv_out, silu(encoder.norm_out(x))) + around
        yield moments[:, : self.latent_channels]


class _Seen(Seen):
    """What the causal layers read last, with those between resolutions."""

    def upsampled(self, layer: Any, x: Tensor) -> Tensor:
        """Return frames with twice the rows and columns, and twice the frames after a video's first."""
        made = self.conv(layer.conv, x)
        if not layer.add_temporal_upsample:
            return _larger(made) + _larger(x.repeat_interleave(layer.repeats, dim=1))
        parts = []
        if self.first:
            # Of the two frames that it becomes, the first frame of a video is one.
            first = _larger(made[:, :, :1])
            parts.append(
                first[:, : first.shape[1] // 2] + _larger(x[:, :, :1].repeat_interleave(layer.repeats // 2, dim=1))
            )
            made, x = made[:, :, 1:], x[:, :, 1:]
        if x.shape[2]:
            parts.append(_larger(made, 2) + _larger(x.repeat_interleave(layer.repeats, dim=1), 2))
        return torch.cat(parts, dim=2)

    def downsampled(self, layer: Any, x: Tensor) -> Tensor:
        """Return frames with half the rows and columns, and half the frames after a video's first."""
        made, group = self.conv(layer.conv, x), layer.group_size
        if not layer.add_temporal_downsample:
            return _smaller(made) + torch.unflatten(_smaller(x), 1, (-1, group)).mean(dim=2)
        parts = []
        if self.first:
            around = torch.unflatten(_smaller(x[:, :, :1]), 1, (-1, group // 2)).mean(dim=2)
            parts.append(_smaller(made[:, :, :1]).repeat(1, 2, 1, 1, 1) + around)
            made, x = made[:, :, 1:], x[:, :, 1:]
        if x.shape[2]:
            parts.append(_smaller(made, 2) + torch.unflatten(_smaller(x, 2), 1, (-1, group)).mean(dim=2))
        return torch.cat(parts, dim=2)


def _larger(x: Tensor, frames: int = 1) -> Tensor:
    """Return (B,f·4·C,T,h,w) as (B,C,T·f,2h,2w)."""
    cut = torch.unflatten(x, 1, (frames, 2, 2, -1)).permute(0, 4, 5, 1, 6, 2, 7, 3)
    return cut.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _smaller(x: Tensor, frames: int = 1) -> Tensor:
    """Return (B,C,T·f,2h,2w) as (B,f·4·C,T,h,w): undo `_larger`."""
    cut = torch.unflatten(torch.unflatten(torch.unflatten(x, 4, (-1, 2)), 3, (-1, 2)), 2, (-1, frames))
    return cut.permute(0, 3, 5, 7, 1, 2, 4, 6).flatten(1, 4)


def _names(levels: int) -> Iterator[tuple[str, str]]:
    """Yield names in the file and in the network."""
    for half, theirs, ours, step, sampler, blocks in (
        ("encoder", "down", "down_blocks", "downsample", "downsamplers", RES_BLOCKS),
        ("decoder", "up", "up_blocks", "upsample", "upsamplers", RES_BLOCKS + 1),
    ):
        for name in ("conv_in", "norm_out", "conv_out"):
            yield f"{half}.{name}", f"{half}.{name}"
        for level in range(levels):
            for i in range(blocks):
                yield from inside(
                    f"{half}.{theirs}.{level}.block.{i}", f"{half}.{ours}.{level}.resnets.{i}", _RES_BLOCK
                )
            yield f"{half}.{theirs}.{level}.{step}", f"{half}.{ours}.{level}.{sampler}.0"
        for i in range(2):
            yield from inside(f"{half}.mid.block_{i + 1}", f"{half}.mid_block.resnets.{i}", _RES_BLOCK)
        yield from inside(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0", _ATTENTION)
