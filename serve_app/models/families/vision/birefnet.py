"""BiRefNet: the foreground of an image, as a mask.

The image is encoded by a Swin transformer at its size and at half of it, and decoded from coarse to fine with parts of
itself beside. The encoder is transformers' SwinBackbone. Reads the authors' file. Source: Zheng et al. 2024,
arXiv:2401.03407.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.ops import deform_conv2d
from transformers.models.swin.configuration_swin import SwinConfig
from transformers.models.swin.modeling_swin import SwinBackbone, SwinRelativePositionBias

from serve_app.models.families.family import ImageModelFamily, Located
from serve_app.models.families.vision.batch_norm import FixedBatchNorm
from serve_app.models.files.layout import Place, Table, places
from serve_app.models.files.tensors import Tensors

MARK = "bb.layers.1.blocks.0.attn.relative_position_bias_table"
HEAD = 32
STAGES = 4
KERNELS = (1, 3, 7)
"""Of the deformable convolutions beside each other."""
INSIDE, POOLED, GATED = 64, 256, 16
_UNREAD = ("num_batches_tracked", "relative_position_index")
_EXTRA = 5
"""Convolutions of the image itself that go into the decoder."""


@dataclass(frozen=True, slots=True)
class BiRefNet(ImageModelFamily):
    """A BiRefNet. width: of its first stage; layers: of each; window: patches along a side of one."""

    title = "BiRefNet"
    dtypes = (torch.float32,)
    image_size = 1024
    """The sides of what it looks at, into which an image is squeezed."""

    width: int
    layers: tuple[int, ...]
    window: int

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        whole = files[0]
        if MARK in whole.shapes:
            family = cls.probe(whole)
            table = family.table()
            # What is only read in training is left out.
            own = {n: s for n, s in whole.shapes.items() if places(n, table) and not n.endswith(_UNREAD)}
            yield Located(family, Tensors(own, whole.where))

    @classmethod
    def probe(cls, tensors: Tensors) -> BiRefNet:
        """Read the network's size off its tensors. Errors: ModelFileError for another edition."""
        stages = tensors.count("bb.layers.")
        width = tensors.shape("bb.patch_embed.proj.weight")[0]
        if stages != STAGES or width % HEAD:
            raise tensors.unsupported(
                f"holds a BiRefNet of {stages} stages, the first {width} wide; supported are {STAGES}, of a multiple "
                f"of {HEAD}"
            )
        layers = tuple(tensors.count(f"bb.layers.{stage}.blocks.") for stage in range(stages))
        return cls(width, layers, (isqrt(tensors.shape(MARK)[0]) + 1) // 2)

    @property
    def widths(self) -> tuple[int, ...]:
        """Of what the decoder reads, from coarse to fine: both sizes' beside each other."""
        return tuple(2 * self.width << stage for stage in reversed(range(STAGES)))

    def table(self, tensors: Tensors | None = None) -> Table:
        names: dict[str, str | tuple[Place, ...]] = {
            "bb.patch_embed.proj": "encoder.swin.embeddings.patch_embeddings.projection",
            "bb.patch_embed.norm": "encoder.swin.embeddings.norm",
            "squeeze_module.0": "squeeze",
        }
        names |= {f"bb.norm{stage}": f"encoder.hidden_states_norms.stage{stage + 1}" for stage in range(STAGES)}
        names |= {f"decoder.{name}": f"decoder.{name}" for name in _DECODER}
        for stage, count in enumerate(self.layers):
            width = self.width << stage
            theirs, ours = f"bb.layers.{stage}", f"encoder.swin.encoder.layers.{stage}"
            names[f"{theirs}.downsample"] = f"{ours}.downsample"
            for block in range(count):
                names |= dict(_block(f"{theirs}.blocks.{block}", f"{ours}.blocks.{block}", width))
        return names

    def build(self) -> nn.Module:
        network = nn.Module()
        encoder: Any = SwinBackbone(
            SwinConfig(
                image_size=self.image_size,
                embed_dim=self.width,
                depths=list(self.layers),
                num_heads=[(self.width << stage) // HEAD for stage in range(STAGES)],
                window_size=self.window,
                out_features=[f"stage{stage + 1}" for stage in range(STAGES)],
            )
        )
        # The last norm of transformers' network is not among those that the stages' outputs have.
        encoder.swin.layernorm = nn.Identity()
        network.encoder = encoder
        network.squeeze = _Block(sum(self.widths), self.widths[0])
        network.decoder = _Decoder(self.widths)
        return network

    def answer(self, network: Any, pixels: Tensor, **asked: Any) -> Mapping[str, Tensor]:
        """Return "mask" (B,1,H,W), before the sigmoid, of pixels (B,3,H,W) in 0…1."""
        _place_windows(network.encoder, self.window, pixels.device)
        height, width = pixels.shape[-2:]
        whole = network.encoder(pixels).feature_maps
        half = network.encoder(_sized(pixels, (height // 2, width // 2))).feature_maps
        fine = [torch.cat([one, _sized(other, one.shape[2:])], dim=1) for one, other in zip(whole, half, strict=True)]
        *finer, coarse = fine
        coarse = torch.cat([*(_sized(one, coarse.shape[2:]) for one in finer), coarse], dim=1)
        return {"mask": network.decoder(pixels, [network.squeeze(coarse), *reversed(finer)])}


_DECODER = (
    *(f"ipt_blk{number}" for number in range(1, _EXTRA + 1)),
    *(f"decoder_block{number}" for number in range(1, STAGES + 1)),
    *(f"{name}_{number}" for name in ("gdt_convs", "gdt_convs_attn") for number in range(2, STAGES + 1)),
    *(f"lateral_block{number}" for number in range(2, STAGES + 1)),
    "conv_out1",
)
"""The parts of the decoder that are read outside of training."""


def _block(theirs: str, ours: str, width: int) -> Iterator[tuple[str, str | tuple[Place, ...]]]:
    for kind in ("weight", "bias"):
        yield (
            f"{theirs}.attn.qkv.{kind}",
            tuple(
                Place(f"{ours}.attention.{one}_proj.{kind}", (i * width, (i + 1) * width))
                for i, one in enumerate("qkv")
            ),
        )
    yield f"{theirs}.attn.proj", f"{ours}.attention.o_proj"
    table = "relative_position_bias_table"
    yield f"{theirs}.attn.{table}", f"{ours}.attention.relative_position_bias.{table}"
    yield f"{theirs}.norm1", f"{ours}.layernorm_before"
    yield f"{theirs}.norm2", f"{ours}.layernorm_after"
    yield f"{theirs}.mlp", f"{ours}.mlp"


def _place_windows(encoder: nn.Module, window: int, device: torch.device) -> None:
    """Compute which bias each pair of a window's patches has, where the network was made without numbers."""
    for layer in encoder.modules():
        if isinstance(layer, SwinRelativePositionBias) and layer.relative_position_index.is_meta:
            places_ = torch.arange(window, device=device)
            grid = torch.cartesian_prod(places_, places_)
            apart = grid[:, None] - grid[None] + window - 1
            layer.relative_position_index = (apart[..., 0] * (2 * window - 1) + apart[..., 1]).flatten()


def _sized(x: Tensor, size: Sequence[int]) -> Tensor:
    return interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


class _Deformable(nn.Module):
    """A convolution that says itself where it reads each of its places, and how much of it; normalised."""

    def __init__(self, reads: int, writes: int, kernel: int) -> None:
        super().__init__()
        self.padding = kernel // 2
        self.atrous_conv = nn.Module()
        for name, outputs in (("offset_conv", 2 * kernel**2), ("modulator_conv", kernel**2)):
            self.atrous_conv.add_module(name, nn.Conv2d(reads, outputs, kernel, padding=self.padding))
        # No convolution of torch's: the weights of those may be packed, and this one's are read as they are.
        self.atrous_conv.regular_conv = nn.Module()
        self.atrous_conv.regular_conv.weight = nn.Parameter(torch.empty(writes, reads, kernel, kernel))
        self.bn = FixedBatchNorm(writes)

    def forward(self, x: Tensor) -> Tensor:
        own: Any = self.atrous_conv
        mask = 2 * own.modulator_conv(x).sigmoid()
        made = deform_conv2d(x, own.offset_conv(x), own.regular_conv.weight, padding=self.padding, mask=mask)
        normed: Tensor = self.bn(made).relu()
        return normed


class _Pyramid(nn.Module):
    """Deformable convolutions of several sizes beside each other, with the mean of the image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.aspp1 = _Deformable(width, POOLED, 1)
        self.aspp_deforms = nn.ModuleList(_Deformable(width, POOLED, kernel) for kernel in KERNELS)
        pooled = (nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, POOLED, 1, bias=False), FixedBatchNorm(POOLED), nn.ReLU())
        self.global_avg_pool = nn.Sequential(*pooled)
        self.conv1 = nn.Conv2d(POOLED * (2 + len(KERNELS)), width, 1, bias=False)
        self.bn1 = FixedBatchNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.global_avg_pool(x).expand(-1, -1, *x.shape[2:])
        beside = [self.aspp1(x), *(deform(x) for deform in self.aspp_deforms), mean]
        made: Tensor = self.bn1(self.conv1(torch.cat(beside, dim=1))).relu()
        return made


class _Block(nn.Module):
    """A block of the decoder."""

    def __init__(self, reads: int, writes: int) -> None:
        super().__init__()
        self.conv_in, self.bn_in = nn.Conv2d(reads, INSIDE, 3, padding=1), FixedBatchNorm(INSIDE)
        self.dec_att = _Pyramid(INSIDE)
        self.conv_out, self.bn_out = nn.Conv2d(INSIDE, writes, 3, padding=1), FixedBatchNorm(writes)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.bn_out(self.conv_out(self.dec_att(self.bn_in(self.conv_in(x)).relu())))
        return made


class _Convolutions(nn.Module):
    """Two convolutions of parts of the image."""

    def __init__(self, reads: int, writes: int) -> None:
        super().__init__()
        self.conv1, self.conv_out = nn.Conv2d(reads, INSIDE, 3, padding=1), nn.Conv2d(INSIDE, writes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.conv_out(self.conv1(x))
        return made


class _Decoder(nn.Module):
    """Decodes from coarse to fine. widths: of what it reads, so ordered."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        # Of the image beside each level, from the coarsest: the first two have the coarsest's width.
        beside = [width // 8 for width in (widths[0], *widths)]
        writes = [*widths[1:], widths[-1] // 2]
        for number, width in zip(range(_EXTRA, 0, -1), beside, strict=True):
            self.add_module(f"ipt_blk{number}", _Convolutions(3 * 4 ** _halvings(number), width))
        for number, reads, extra, wrote in zip(range(STAGES, 0, -1), widths, beside, writes, strict=False):
            self.add_module(f"decoder_block{number}", _Block(reads + extra, wrote))
            if number > 1:
                gate = (nn.Conv2d(wrote, GATED, 3, padding=1), FixedBatchNorm(GATED), nn.ReLU())
                self.add_module(f"gdt_convs_{number}", nn.Sequential(*gate))
                self.add_module(f"gdt_convs_attn_{number}", nn.Sequential(nn.Conv2d(GATED, 1, 1)))
                lateral = nn.Module()
                lateral.conv = nn.Conv2d(wrote, wrote, 1)
                self.add_module(f"lateral_block{number}", lateral)
        self.conv_out1 = nn.Sequential(nn.Conv2d(writes[-1] + beside[-1], 1, 1))

    def forward(self, pixels: Tensor, levels: Sequence[Tensor]) -> Tensor:
        """Return maps (B,1,H,W) of pixels (B,3,H,W) and of levels from coarse to fine."""
        x = levels[0]
        for number, finer in zip(range(STAGES, 0, -1), (*levels[1:], pixels), strict=True):
            x = self.get_submodule(f"decoder_block{number}")(self._with_image(x, pixels, number + 1))
            if number > 1:
                gates = self.get_submodule(f"gdt_convs_{number}")(x)
                x = x * self.get_submodule(f"gdt_convs_attn_{number}")(gates).sigmoid()
            x = _sized(x, finer.shape[2:])
            if number > 1:
                x = x + self.get_submodule(f"lateral_block{number}.conv")(finer)
        made: Tensor = self.conv_out1(self._with_image(x, pixels, 1))
        return made

    def _with_image(self, x: Tensor, pixels: Tensor, number: int) -> Tensor:
        """Return maps (B,C,h,w) with what is seen in the image, cut in parts of that size, column by column."""
        height, width = x.shape[2:]
        parts = torch.cat([p for c in torch.split(pixels, width, dim=3) for p in torch.split(c, height, dim=2)], dim=1)
        return torch.cat([x, self.get_submodule(f"ipt_blk{number}")(_sized(parts, (height, width)))], dim=1)


def _halvings(number: int) -> int:
    """Return how many times the sides are halved of what a convolution of the image goes beside."""
    return {5: 5, 4: 4, 3: 3, 2: 2, 1: 0}[number]
