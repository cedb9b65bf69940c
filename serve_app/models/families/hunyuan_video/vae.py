"""The autoencoder of HunyuanVideo 1 and Kandinsky 5: a latent frame covers four images, the first one image.

A cell is 8 pixels a side. Reads ComfyUI's file; run by the layers of diffusers' AutoencoderKLHunyuanVideo. A video is
processed in ComfyUI's pieces, as norms are of a piece, and layers that halve it in time read two frames of the one
before. Source: Kong et al. 2024, arXiv:2412.03603.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import HunyuanVideoDecoder3D, HunyuanVideoEncoder3D
from torch import Tensor, nn
from torch.nn.functional import interpolate, silu

from serve_app.models.families.family import Located, VideoVaeFamily, marked
from serve_app.models.families.hunyuan_video.causal import TOGETHER, Seen, middle
from serve_app.models.files.layout import Table, inside
from serve_app.models.files.tensors import Tensors
from serve_app.store.models.kinds import VAE_PREFIXES

MARKS = ("decoder.conv_in.conv.weight",)
OTHERS = ("decoder.up.0.upsample.conv.conv.weight", "decoder.mid.block_1.conv1.conv.weight")
"""A tensor that files of HunyuanVideo 1.5 have, and one that those of LTX-Video and CogVideoX lack."""
FACTOR, FRAMES = 8, 4
LEVELS = FACTOR.bit_length()
GROUPS, EPS = 32, 1e-6

_RES_BLOCK = {"nin_shortcut": "conv_shortcut"}
_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v"}


@dataclass(frozen=True, slots=True)
class HunyuanVideoVae(VideoVaeFamily):
    """An autoencoder of videos. widths: of its levels, the finest first; all but the last halve the resolution.

    res_blocks: of a level of the encoder; the decoder's have one more.
    """

    frames = FRAMES
    dtypes = (torch.bfloat16, torch.float16)

    latent_channels: int
    widths: tuple[int, ...]
    res_blocks: int
    image_channels: int = 3

    @property
    def factor(self) -> int:
        return FACTOR

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        found = marked(files[0], VAE_PREFIXES, MARKS) if len(files) == 1 else None
        newer, needed = OTHERS
        if found is not None and newer not in found[1].shapes and needed in found[1].shapes:
            yield Located(cls.probe(found[1]), found[1], prefix=found[0])

    @classmethod
    def probe(cls, tensors: Tensors) -> HunyuanVideoVae:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        levels = tensors.count("encoder.down.")
        if levels != LEVELS:
            raise tensors.unsupported(f"holds a VAE of HunyuanVideo of {levels} levels; supported are {LEVELS}")
        return cls(
            tensors.shape("decoder.conv_in.conv.weight")[1],
            tuple(tensors.shape(f"encoder.down.{i}.block.0.conv1.conv.weight")[0] for i in range(levels)),
            tensors.count("encoder.down.0.block."),
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        return dict(_names(self.res_blocks))

    def build(self) -> nn.Module:
        network: Any = nn.Module()
        shared = {
            "block_out_channels": self.widths,
            "layers_per_block": self.res_blocks,
            "norm_num_groups": GROUPS,
            "mid_block_add_attention": False,
        }
        network.encoder = HunyuanVideoEncoder3D(self.image_channels, self.latent_channels, **shared)
        network.decoder = HunyuanVideoDecoder3D(self.latent_channels, self.image_channels, **shared)
        for half in (network.encoder, network.decoder):
            half.mid_block.attentions = nn.ModuleList([_Attention(self.widths[-1])])
        network.quant_conv = nn.Conv3d(2 * self.latent_channels, 2 * self.latent_channels, 1)
        network.post_quant_conv = nn.Conv3d(self.latent_channels, self.latent_channels, 1)
        built: nn.Module = network
        return built

    def decode_frames(self, network: Any, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        decoder, z = network.decoder, network.post_quant_conv(torch.cat([*latents], dim=2))
        x = middle(decoder.mid_block, Seen().conv(decoder.conv_in, z))
        seen = Seen()
        for piece in torch.split(x, TOGETHER, dim=2):
            for block in decoder.up_blocks:
                piece = seen.blocks(block.resnets, piece)
                for up in block.upsamplers or ():
                    piece = seen.conv(up.conv, _larger(piece, up.upsample_factor, first=seen.first))
            pixels = seen.conv(decoder.conv_out, silu(decoder.conv_norm_out(piece)))
            seen = seen.after()
            yield pixels

    def latent_frames(self, count: int) -> Iterator[slice]:
        """Yield as many images together as ComfyUI does, since norms are of what is encoded at once."""
        yield slice(0, 1)
        whole = 1 + (count - 1) // FRAMES * FRAMES
        for first in range(1, whole, TOGETHER * FRAMES):
            yield slice(first, min(first + TOGETHER * FRAMES, whole))

    def encode_frames(self, network: Any, pixels: Iterable[Tensor]) -> Iterator[Tensor]:
        encoder, seen, made = network.encoder, Seen(), []
        for piece in pixels:
            x = seen.conv(encoder.conv_in, piece)
            for block in encoder.down_blocks:
                x = seen.blocks(block.resnets, x)
                for down in block.downsamplers or ():
                    x = seen.conv(down.conv, x)
            seen = seen.after()
            made.append(x)
        x = middle(encoder.mid_block, torch.cat(made, dim=2))
        moments = network.quant_conv(Seen().conv(encoder.conv_out, silu(encoder.conv_norm_out(x))))
        yield moments[:, : self.latent_channels]


class _Attention(nn.Module):
    """The layers of attention over the cells of a video."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width, EPS)
        self.to_q, self.to_k, self.to_v, self.proj_out = (nn.Conv3d(width, width, 1) for _ in range(4))


def _larger(x: Tensor, factor: Sequence[int], *, first: bool) -> Tensor:
    """Return frames (B,C,f,h,w) repeated in rows and columns, and in time but for a video's first frame."""
    scale = tuple(map(float, factor))
    if not first or scale[0] == 1:
        return interpolate(x, scale_factor=scale)
    parts = [interpolate(x[:, :, :1], scale_factor=(1.0, *scale[1:]))]
    if x.shape[2] > 1:
        parts.append(interpolate(x[:, :, 1:], scale_factor=scale))
    return torch.cat(parts, dim=2)


def _names(res_blocks: int) -> Iterator[tuple[str, str]]:
    """Yield names in the file and in the network."""
    yield "quant_conv", "quant_conv"
    yield "post_quant_conv", "post_quant_conv"
    for half in ("encoder", "decoder"):
        yield f"{half}.conv_in", f"{half}.conv_in"
        yield f"{half}.norm_out", f"{half}.conv_norm_out"
        yield f"{half}.conv_out", f"{half}.conv_out"
        for i in range(2):
            yield from inside(f"{half}.mid.block_{i + 1}", f"{half}.mid_block.resnets.{i}", _RES_BLOCK)
        yield from inside(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0", _ATTENTION)
    for level in range(LEVELS):
        # The file counts the decoder's levels from the finest, the network from the coarsest.
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{LEVELS - 1 - level}"
        for i in range(res_blocks):
            yield from inside(f"encoder.down.{level}.block.{i}", f"{down}.resnets.{i}", _RES_BLOCK)
        for i in range(res_blocks + 1):
            yield from inside(f"decoder.up.{level}.block.{i}", f"{up}.resnets.{i}", _RES_BLOCK)
        yield f"encoder.down.{level}.downsample", f"{down}.downsamplers.0"
        yield f"decoder.up.{level}.upsample", f"{up}.upsamplers.0"
