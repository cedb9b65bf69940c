"""The autoencoder of SeedVR2: of videos, causal, or of images as videos of one frame.

A latent frame covers four images, the first one image. Reads ComfyUI's file. Source: Wang et al. 2025,
arXiv:2506.05301; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from serve_app.models.families.family import Located, VideoVaeFamily, marked
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.store.models.kinds import VAE_PREFIXES

SCALE = 0.9152
"""Latents are multiplied by it."""
RES_BLOCKS = 2
GROUPS, EPS = 32, 1e-6
HALVES_TIME = (False, True, True)
"""The encoder's steps that halve the number of frames; all halve the sides. The decoder doubles in its first two."""
MARK = "decoder.up_blocks.2.upsamplers.0.upscale_conv.weight"

Seen: TypeAlias = dict[nn.Module, Tensor]
"""The last frames that each convolution has read, of the video so far."""


class CausalConv(nn.Conv3d):
    """A convolution over frames and those before; before the first there are copies of it."""

    def forward(self, x: Tensor, seen: Seen | None = None) -> Tensor:
        """Return the output for frames (B,C,T,H,W). seen: of those before; None for a whole video."""
        size, step = self.kernel_size[0], self.stride[0]
        if size > 1:
            before = None if seen is None else seen.get(self)
            x = torch.cat([x[:, :, :1].expand(-1, -1, size - 1, -1, -1) if before is None else before, x], dim=2)
            if seen is not None:
                seen[self] = x[:, :, step - size :]
        return super().forward(x)


class ResBlock(nn.Module):
    """A residual block; norms are over a frame each."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, inputs, EPS)
        self.conv1 = CausalConv(inputs, outputs, 3, padding=(0, 1, 1))
        self.norm2 = nn.GroupNorm(GROUPS, outputs, EPS)
        self.conv2 = CausalConv(outputs, outputs, 3, padding=(0, 1, 1))
        self.conv_shortcut = CausalConv(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, seen: Seen | None) -> Tensor:
        made = self.conv1(silu(_normed(self.norm1, x)), seen)
        made = self.conv2(silu(_normed(self.norm2, made)), seen)
        out: Tensor = made + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return out


class Downsampler(nn.Module):
    """Halves the sides, and the number of frames where it says so."""

    def __init__(self, width: int, *, in_time: bool) -> None:
        super().__init__()
        of_time = (3, 2) if in_time else (1, 1)
        self.conv = CausalConv(width, width, (of_time[0], 3, 3), (of_time[1], 2, 2))

    def forward(self, x: Tensor, seen: Seen | None) -> Tensor:
        made: Tensor = self.conv(pad(x, (0, 1, 0, 1)), seen)
        return made


class Upsampler(nn.Module):
    """Doubles the sides, and the number of frames but for the first where it says so."""

    def __init__(self, width: int, *, in_time: bool) -> None:
        super().__init__()
        self.times = 2 if in_time else 1
        self.upscale_conv = nn.Conv3d(width, width * 4 * self.times, 1)
        self.conv = CausalConv(width, width, 3, padding=(0, 1, 1))

    def forward(self, x: Tensor, seen: Seen | None) -> Tensor:
        first = seen is None or self.conv not in seen
        batch, _, frames, rows, columns = x.shape
        cells = self.upscale_conv(x).view(batch, 2, 2, self.times, -1, frames, rows, columns)
        spread = cells.permute(0, 4, 5, 3, 6, 1, 7, 2).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        if first and self.times > 1:
            spread = torch.cat([spread[:, :, :1], spread[:, :, 2:]], dim=2)
        made: Tensor = self.conv(spread, seen)
        return made


class Level(nn.Module):
    """A level of either half. step: what follows its blocks, by its name."""

    def __init__(self, inputs: int, outputs: int, blocks: int, **step: nn.Module) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(inputs if i == 0 else outputs, outputs) for i in range(blocks))
        for name, module in step.items():
            self.add_module(name, nn.ModuleList([module]))
        self._steps = tuple(step)

    def forward(self, x: Tensor, seen: Seen | None) -> Tensor:
        for block in (*self.resnets, *(getattr(self, name)[0] for name in self._steps)):
            x = block(x, seen)
        return x


class Middle(nn.Module):
    """The middle of either half, with attention within a frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(width, width) for _ in range(2))
        attention = Attention(
            width, heads=1, dim_head=width, bias=True, norm_num_groups=GROUPS, eps=EPS, residual_connection=True
        )
        self.attentions = nn.ModuleList([attention])

    def forward(self, x: Tensor, seen: Seen | None) -> Tensor:
        x = self.resnets[0](x, seen)
        frames = x.transpose(1, 2)
        attended = self.attentions[0](frames.flatten(0, 1))
        x = attended.view(frames.shape).transpose(1, 2)
        out: Tensor = self.resnets[1](x, seen)
        return out


class Half(nn.Module):
    """The encoder or the decoder. levels: by their name; widths: of the first and the last layer inside."""

    def __init__(
        self, inputs: int, outputs: int, levels: str, blocks: Sequence[Level], widths: tuple[int, int], middle: int
    ) -> None:
        super().__init__()
        self.conv_in = CausalConv(inputs, widths[0], 3, padding=(0, 1, 1))
        self.add_module(levels, nn.ModuleList(blocks))
        self.mid_block = Middle(middle)
        self.conv_norm_out = nn.GroupNorm(GROUPS, widths[1], EPS)
        self.conv_out = CausalConv(widths[1], outputs, 3, padding=(0, 1, 1))
        self._levels = levels

    def forward(self, x: Tensor, seen: Seen | None) -> Tensor:
        levels = getattr(self, self._levels)
        x = self.conv_in(x, seen)
        for block in (*levels, self.mid_block) if self._levels == "down_blocks" else (self.mid_block, *levels):
            x = block(x, seen)
        out: Tensor = self.conv_out(silu(_normed(self.conv_norm_out, x)), seen)
        return out


@dataclass(frozen=True, slots=True)
class SeedVr2Vae(VideoVaeFamily):
    """An autoencoder of videos. widths: of its levels, from the finest."""

    dtypes = (torch.float16,)
    frames = 4
    fades_inside = True

    widths: tuple[int, ...]
    latent_channels: int = 16
    image_channels: int = 3

    @property
    def factor(self) -> int:
        return int(2 ** len(HALVES_TIME))

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        found = marked(files[0], VAE_PREFIXES, (MARK,)) if len(files) == 1 else None
        if found is not None:
            yield Located(cls.probe(found[1]), found[1], prefix=found[0])

    @classmethod
    def probe(cls, tensors: Tensors) -> SeedVr2Vae:
        """Read the network's size off its tensors. Errors: ModelFileError for another number of levels."""
        levels = tensors.count("encoder.down_blocks.")
        if levels != len(HALVES_TIME) + 1:
            raise tensors.unsupported(f"has a SeedVR2 VAE of {levels} levels; supported are {len(HALVES_TIME) + 1}")
        return cls(
            tuple(tensors.shape(f"encoder.down_blocks.{i}.resnets.0.conv1.weight")[0] for i in range(levels)),
            tensors.shape("decoder.conv_in.weight")[1],
            tensors.shape("encoder.conv_in.weight")[1],
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        return {"encoder": "encoder", "decoder": "decoder"}

    def build(self) -> nn.Module:
        first, last = self.widths[0], self.widths[-1]
        steps: list[dict[str, nn.Module]] = [
            {"downsamplers": Downsampler(width, in_time=in_time)}
            for width, in_time in zip(self.widths, HALVES_TIME, strict=False)
        ]
        down = [
            Level(self.widths[max(0, i - 1)], width, RES_BLOCKS, **(steps[i] if i < len(steps) else {}))
            for i, width in enumerate(self.widths)
        ]
        back = self.widths[::-1]
        steps = [
            {"upsamplers": Upsampler(width, in_time=in_time)}
            for width, in_time in zip(back, reversed(HALVES_TIME), strict=False)
        ]
        up = [
            Level(back[max(0, i - 1)], width, RES_BLOCKS + 1, **(steps[i] if i < len(steps) else {}))
            for i, width in enumerate(back)
        ]
        network = nn.Module()
        network.encoder = Half(
            self.image_channels, 2 * self.latent_channels, "down_blocks", down, (first, last), middle=last
        )
        network.decoder = Half(self.latent_channels, self.image_channels, "up_blocks", up, (last, first), middle=last)
        return network

    def decode_frames(self, network: Any, latents: Iterable[Tensor]) -> Iterator[Tensor]:
        seen: Seen = {}
        for latent in latents:
            yield network.decoder(latent / SCALE, seen)

    def encode_frames(self, network: Any, pixels: Iterable[Tensor]) -> Iterator[Tensor]:
        seen: Seen = {}
        for images in pixels:
            yield network.encoder(images, seen).chunk(2, dim=1)[0] * SCALE

    def decode(self, network: Any, latents: Tensor) -> Tensor:
        if latents.shape[2] > 1:
            return super(SeedVr2Vae, self).decode(network, latents)
        # A single image has no later latent frame to remember anything for.
        pixels: Tensor = network.decoder(latents / SCALE, None)
        return pixels

    def encode(self, network: Any, pixels: Tensor) -> Tensor:
        if pixels.shape[2] > 1:
            return super(SeedVr2Vae, self).encode(network, pixels)
        means: Tensor = network.encoder(pixels, None).chunk(2, dim=1)[0]
        return means * SCALE


def _normed(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """Return frames (B,C,T,H,W), each normed alone."""
    frames = x.transpose(1, 2)
    made: Tensor = norm(frames.flatten(0, 1)).view(frames.shape).transpose(1, 2)
    return made
