"""RIFE: frames between two of a video, by one motion that is refined from coarse to fine (its 4.x networks).

Reads the authors' file, and ComfyUI's. Source: Huang et al. 2022, arXiv:2011.06294.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, interpolate, leaky_relu, pixel_shuffle

from serve_app.models.families.family import ImageModelFamily, Located, marked
from serve_app.models.files.layout import Table, places
from serve_app.models.files.tensors import Tensors

SCALES = (16, 8, 4, 2, 1)
"""By how much smaller each block looks at the frames."""
SLOPE = 0.2
LAYERS = 8
_PREFIXES = ("", "module.", "flownet.", "module.flownet.")
_MARK = "encode.cnn3.weight"
_COLOURS, _HEAD, _WRITES = 3, 16, 13


@dataclass(frozen=True, slots=True)
class Rife(ImageModelFamily):
    """A RIFE. head: features of a frame; widths: of its blocks."""

    title = "RIFE"
    multiple = 64
    smallest = 33
    """A frame is reflected at its edges to a multiple, for which it has to be more than half of one."""

    head: int
    widths: tuple[int, ...]

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        if (found := marked(files[0], _PREFIXES, (_MARK,))) is not None:
            prefix, tensors = found
            family = cls.probe(tensors)
            table = family.table()
            # A teacher and what looks at times are of the training alone.
            own = {name: shape for name, shape in tensors.shapes.items() if places(name, table)}
            yield Located(family, Tensors(own, tensors.where), prefix=prefix)

    @classmethod
    def probe(cls, tensors: Tensors) -> Rife:
        """Read the network's size off its tensors. Errors: ModelFileError for another edition."""
        blocks = "blocks." if tensors.has("blocks.") else "block"
        names = [f"{blocks}{i}.conv0.1.0.weight" for i in range(len(SCALES))]
        if not all(name in tensors.shapes for name in names):
            raise tensors.unsupported(f"holds a RIFE of another edition than those of {len(SCALES)} blocks")
        return cls(tensors.shape(_MARK)[1], tuple(tensors.shape(name)[0] for name in names))

    def table(self, tensors: Tensors | None = None) -> Table:
        by_authors = {f"block{i}": f"blocks.{i}" for i in range(len(SCALES))}
        return {"encode": "encode", "blocks": "blocks", **by_authors}

    def build(self) -> nn.Module:
        network = nn.Module()
        network.encode = nn.Module()
        network.encode.cnn0 = nn.Conv2d(_COLOURS, _HEAD, 3, stride=2, padding=1)
        network.encode.cnn1 = nn.Conv2d(_HEAD, _HEAD, 3, padding=1)
        network.encode.cnn2 = nn.Conv2d(_HEAD, _HEAD, 3, padding=1)
        network.encode.cnn3 = nn.ConvTranspose2d(_HEAD, self.head, 4, stride=2, padding=1)
        frames = 2 * (_COLOURS + self.head) + 1
        # Later blocks also read the motion, the mask and the features of the one before.
        reads = [frames, *[frames + _WRITES] * (len(SCALES) - 1)]
        network.blocks = nn.ModuleList(_Block(*sizes) for sizes in zip(reads, self.widths, strict=True))
        return network

    def answer(self, network: Any, pixels: Tensor, **asked: Any) -> Mapping[str, Tensor]:
        """Return frames as `Film.answer` does, of sides that are multiples of 64."""
        features = [_encoded(network.encode, one) for one in torch.split(pixels, 1)]
        made = []
        for i in range(len(pixels) - 1):
            frames = torch.split(pixels[i : i + 2], 1)
            for share in asked["shares"]:
                made.append(_between(network.blocks, frames, features[i : i + 2], share))
        return {"frames": torch.cat(made)}


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.beta = nn.Conv2d(width, width, 3, padding=1), nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return leaky_relu(x + self.conv(x) * self.beta, SLOPE)


class _Block(nn.Module):
    """A refinement of the motion."""

    def __init__(self, reads: int, width: int) -> None:
        super().__init__()
        self.conv0 = nn.Sequential(
            nn.Sequential(nn.Conv2d(reads, width // 2, 3, stride=2, padding=1), nn.LeakyReLU(SLOPE)),
            nn.Sequential(nn.Conv2d(width // 2, width, 3, stride=2, padding=1), nn.LeakyReLU(SLOPE)),
        )
        self.convblock = nn.Sequential(*(_Residual(width) for _ in range(LAYERS)))
        self.lastconv = nn.Sequential(nn.ConvTranspose2d(width, 4 * _WRITES, 4, stride=2, padding=1))

    def forward(self, x: Tensor, motion: Tensor | None, scale: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the change of the motion (1,4,H,W), a mask (1,1,H,W) and features (1,8,H,W)."""
        x = interpolate(x, scale_factor=1 / scale, mode="bilinear")
        if motion is not None:
            x = torch.cat([x, interpolate(motion, scale_factor=1 / scale, mode="bilinear") / scale], dim=1)
        made = pixel_shuffle(self.lastconv(self.convblock(self.conv0(x))), 2)
        made = interpolate(made, scale_factor=scale, mode="bilinear")
        change, mask, features = torch.split(made, [4, 1, _WRITES - 5], dim=1)
        return change * scale, mask, features


def _encoded(encode: Any, frame: Tensor) -> Tensor:
    x = frame
    for layer in (encode.cnn0, encode.cnn1, encode.cnn2):
        x = leaky_relu(layer(x), SLOPE)
    made: Tensor = encode.cnn3(x)
    return made


def _between(blocks: nn.ModuleList, frames: Sequence[Tensor], features: Sequence[Tensor], share: float) -> Tensor:
    """Return the frame (1,3,H,W) at a share of the way between two."""
    time = torch.full_like(frames[0][:, :1], share)
    motion: Tensor | None = None
    last: list[Tensor] = []
    moved: list[Tensor] = [*frames, *features]
    for block, scale in zip(blocks, SCALES, strict=True):
        change, *last = block(torch.cat([*moved, time, *last], dim=1), motion, scale)
        motion = change if motion is None else motion + change
        there = torch.split(motion, 2, dim=1)
        moved = [_moved(image, there[i % 2]) for i, image in enumerate((*frames, *features))]
    return torch.lerp(moved[1], moved[0], last[0].sigmoid())


def _moved(image: Tensor, motion: Tensor) -> Tensor:
    """Return what is in an image (1,C,H,W) where motion (1,2,H,W) leads each pixel, in pixels."""
    height, width = image.shape[2:]
    x, y = (torch.linspace(-1, 1, side, device=image.device) for side in (width, height))
    across, down = (motion[:, i].float() / ((side - 1) / 2) for i, side in enumerate((width, height)))
    grid = torch.stack([x + across, y[:, None] + down], dim=-1)
    return grid_sample(image.float(), grid, padding_mode="border", align_corners=True).to(image.dtype)
