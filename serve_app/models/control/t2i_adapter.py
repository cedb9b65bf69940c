"""A T2I-Adapter: a small network that reads a hint once a run; its features are added inside the backbone's encoder.

Source: Mou et al. 2023, arXiv:2302.08453, in its published layouts: full (of SD 1.x and of SDXL) and light.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, relu

from serve_app.errors import NodeError
from serve_app.models.control.control import ControlNet, Hint, RowIndex, of_another_family, resized
from serve_app.models.families.unet.unet import CELL, FEATURES, Unet, UnetCall
from serve_app.models.files.tensors import Shape, Tensors
from serve_app.sampling.transfer import to_device

XL_INPUTS = (256, 768)
"""Input channels, after unshuffling by 16, that identify an SDXL adapter."""

DIFFUSERS_MARK = "adapter.body.0.resnets.0.block1.weight"
BLOCKS = 2
"""Residual blocks a level of the full layouts."""


@dataclass(frozen=True, slots=True)
class T2iSize:
    """An adapter. inputs: channels after unshuffling pixels by `unshuffle`. channels: of the features, finest first.

    light: the layout with 1×1 convolutions around narrow blocks. kernel: width of the full layouts' convolutions.
    convolved: they halve the resolution by a convolution, not by averaging. blocks: residual blocks a level.
    """

    inputs: int
    unshuffle: int
    channels: tuple[int, ...]
    light: bool
    blocks: int
    kernel: int = 1
    convolved: bool = False

    @classmethod
    def probe(cls, tensors: Tensors) -> T2iSize:
        """Read its size off an adapter's tensors. Errors: ModelFileError for another layout."""
        if "body.0.in_conv.weight" in tensors.shapes:
            levels = tensors.count("body.")
            return cls(
                inputs=tensors.shape("body.0.in_conv.weight")[1],
                unshuffle=8,
                channels=tuple(tensors.shape(f"body.{i}.out_conv.weight")[0] for i in range(levels)),
                light=True,
                blocks=tensors.count("body.0.body."),
            )
        inputs = tensors.shape("conv_in.weight")[1]
        levels = tensors.count("body.") // BLOCKS
        return cls(
            inputs=inputs,
            unshuffle=16 if inputs in XL_INPUTS else 8,
            channels=tuple(tensors.shape(f"body.{BLOCKS * i}.block1.weight")[0] for i in range(levels)),
            light=False,
            blocks=BLOCKS,
            kernel=tensors.shape("body.0.block2.weight")[2],
            convolved=any(name.endswith("down_opt.op.weight") for name in tensors.shapes),
        )

    @property
    def hint_channels(self) -> int:
        """Channels of the hint it reads."""
        return self.inputs // self.unshuffle**2

    @property
    def halves(self) -> tuple[bool, ...]:
        """Which levels begin by halving the resolution."""
        if self.unshuffle == 8:
            return (False, *(True,) * (len(self.channels) - 1))
        return tuple(level == 2 for level in range(len(self.channels)))


def single_names(names: Mapping[str, Shape]) -> dict[str, str]:
    """Return each name in the file -> its name in the single-file layout; they differ in diffusers' files."""
    if DIFFUSERS_MARK not in names:
        return {name: name for name in names}
    return {name: _from_diffusers(name) for name in names}


def _from_diffusers(name: str) -> str:
    parts = name.removeprefix("adapter.").split(".")
    if parts[0] != "body":
        return ".".join(parts)
    level = int(parts[1])
    if parts[2] == "resnets":
        return ".".join(("body", str(BLOCKS * level + int(parts[3])), *parts[4:]))
    return ".".join(("body", str(BLOCKS * level), *parts[2:]))


class T2iNetwork(nn.Module):
    """A T2I-Adapter on its device. The features are for the backbone's levels, finest first.

    Features of an SDXL adapter are for the finest level after its downsampling, for the two others before theirs, and
    for the middle, as in diffusers.
    """

    def __init__(self, size: T2iSize) -> None:
        super().__init__()
        self.size = size
        self.hint_channels = size.hint_channels
        self.unshuffle = nn.PixelUnshuffle(size.unshuffle)
        self.conv_in = None if size.light else nn.Conv2d(size.inputs, size.channels[0], 3, 1, 1)
        widths = (size.inputs if size.light else size.channels[0], *size.channels)
        body: list[nn.Module] = []
        for level, (before, after) in enumerate(zip(widths, size.channels, strict=False)):
            halves = size.halves[level]
            if size.light:
                body.append(_LightLevel(before, after, size.blocks, halves))
                continue
            body.append(_Block(before, after, size.kernel, halves, size.convolved))
            body += [_Block(after, after, size.kernel) for _ in range(size.blocks - 1)]
        self.body = nn.ModuleList(body)

    def control_net(self, key: Hashable, name: str) -> ControlNet:
        """Return the ControlNet interface of this network."""
        return T2iAdapter(key, name, self)

    def forward(self, hint: Tensor) -> list[Tensor]:
        """Return the features (N,C,h,w) of a hint (N,channels,H,W) in 0…1, H and W multiples of the unshuffling."""
        h = self.unshuffle(hint.to(next(self.parameters()).dtype))
        if self.conv_in is not None:
            h = self.conv_in(h)
        features = []
        step = 1 if self.size.light else self.size.blocks
        for i, block in enumerate(self.body):
            h = block(h)
            if i % step == step - 1:
                features.append(h)
        return features


class T2iAdapter(ControlNet):
    """A T2I-Adapter, as `control` uses it."""

    adds_to = FEATURES

    def __init__(self, key: Hashable, name: str, network: T2iNetwork) -> None:
        super().__init__(key, name)
        self.network = network

    def check(self, hint: Hint, backbone: Any) -> None:
        wanted, theirs, given = self.network.hint_channels, self.network.size.channels, hint.image.shape[-1]
        # An adapter for grayscale hints takes the mean of the colours.
        if given != wanted and wanted != 1:
            raise NodeError(f"the hint has {given} channels; '{self.name}' takes {wanted}")
        if not isinstance(backbone, Unet):
            raise of_another_family(self.name, "a UNet", backbone)
        ours = backbone.channels
        # SDXL's adapters have a feature for the middle as well, as wide as the last level.
        if theirs != (ours if self.network.size.unshuffle == CELL else (*ours, *ours[-1:])):
            raise NodeError(
                f"'{self.name}' is made for another family than the model: its widths are {theirs}, the model's {ours}"
            )

    def read(self, hint: Hint, height: int, width: int) -> list[Tensor]:
        """Return the features."""
        network = self.network
        unit = network.size.unshuffle
        rows, columns = (-(-side * CELL // unit) * unit for side in (height, width))
        pixels = to_device(resized(hint.image, rows, columns), next(network.parameters()).device)
        if network.hint_channels == 1:
            pixels = pixels.mean(dim=1, keepdim=True)
        features: list[Tensor] = network(pixels)
        return features

    def residuals(self, call: UnetCall, index: RowIndex, read: Sequence[Tensor], exclusive: bool) -> Sequence[Tensor]:
        return read


class _Halving(nn.Module):
    """Halve the resolution, rounded up, by a convolution or by averaging."""

    def __init__(self, channels: int, convolved: bool) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if convolved else None

    def forward(self, x: Tensor) -> Tensor:
        if self.op is not None:
            convolved: Tensor = self.op(x)
            return convolved
        # An odd side is padded on both ends with zeros, which count in the average.
        return avg_pool2d(x, 2, 2, padding=(x.shape[2] % 2, x.shape[3] % 2))


class _Block(nn.Module):
    """A residual block of the full layouts."""

    def __init__(self, before: int, after: int, kernel: int, halves: bool = False, convolved: bool = False) -> None:
        super().__init__()
        self.down_opt = _Halving(before, convolved) if halves else None
        self.in_conv = nn.Conv2d(before, after, kernel, 1, kernel // 2) if before != after else None
        self.block1 = nn.Conv2d(after, after, 3, 1, 1)
        self.block2 = nn.Conv2d(after, after, kernel, 1, kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.down_opt is None else self.down_opt(x)
        x = x if self.in_conv is None else self.in_conv(x)
        h: Tensor = self.block2(relu(self.block1(x)))
        return x + h


class _LightBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block1 = nn.Conv2d(width, width, 3, 1, 1)
        self.block2 = nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.block2(relu(self.block1(x)))
        return x + h


class _LightLevel(nn.Module):
    """A level of the light layout: narrow blocks between two 1×1 convolutions."""

    def __init__(self, before: int, after: int, blocks: int, halves: bool) -> None:
        super().__init__()
        narrow = after // 4
        self.down_opt = _Halving(before, convolved=False) if halves else None
        self.in_conv = nn.Conv2d(before, narrow, 1)
        self.body = nn.Sequential(*(_LightBlock(narrow) for _ in range(blocks)))
        self.out_conv = nn.Conv2d(narrow, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.down_opt is None else self.down_opt(x)
        result: Tensor = self.out_conv(self.body(self.in_conv(x)))
        return result
