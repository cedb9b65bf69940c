"""FILM: frames between two of a video, by the motion between them at several sizes.

Reads the file that ComfyUI's models are published as. Source: Reda et al. 2022, arXiv:2202.04901.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, grid_sample, interpolate, leaky_relu, pad

from serve_app.models.families.family import ImageModelFamily, Located
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors

MARK = "extract.extract_sublevels.convs.0.0.conv.weight"
LEVELS, SUBLEVELS, FUSED = 7, 4, 5
OWN = 3
"""The finest levels, which have a predictor of their own."""
SLOPE = 0.2
_COLOURS, _MOTION = 3, 2


@dataclass(frozen=True, slots=True)
class Film(ImageModelFamily):
    """A FILM. width: of its first features; motion: of its predictors, from fine to coarse; layers: of each."""

    title = "FILM"
    multiple = 1
    smallest = 2 ** (LEVELS - 1)

    width: int
    motion: tuple[int, ...]
    layers: tuple[int, ...]

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        if MARK in files[0].shapes:
            yield Located(cls.probe(files[0]), files[0])

    @classmethod
    def probe(cls, tensors: Tensors) -> Film:
        """Read the network's size off its tensors. Errors: ModelFileError for another edition."""
        sublevels = tensors.count("extract.extract_sublevels.convs.")
        if sublevels != SUBLEVELS or tensors.count("predict_flow._predictors.") != OWN:
            raise tensors.unsupported(f"holds a FILM of {sublevels} sublevels; supported is one of {SUBLEVELS}")
        names = [*(f"predict_flow._predictors.{i}." for i in reversed(range(OWN))), "predict_flow._predictor."]
        motion = tuple(tensors.shape(f"{name}_convs.0.conv.weight")[0] for name in names)
        layers = tuple(tensors.count(f"{name}_convs.") - 2 for name in names)
        return cls(tensors.shape(MARK)[0], motion, layers)

    def table(self, tensors: Tensors | None = None) -> Table:
        return {name: name for name in ("extract", "predict_flow", "fuse")}

    def build(self) -> nn.Module:
        network, width = nn.Module(), self.width
        network.extract, network.predict_flow, network.fuse = nn.Module(), nn.Module(), nn.Module()
        network.extract.extract_sublevels = nn.Module()
        reads = [_COLOURS, *(width << i for i in range(SUBLEVELS - 1))]
        network.extract.extract_sublevels.convs = nn.ModuleList(
            nn.Sequential(_Convolution(before, width << i, 3), _Convolution(width << i, width << i, 3))
            for i, before in enumerate(reads)
        )
        predictors = [
            _predictor(2 * _features(width, level), *sizes)
            for level, sizes in enumerate(zip(self.motion, self.layers, strict=True))
        ]
        network.predict_flow._predictor = predictors[-1]
        network.predict_flow._predictors = nn.ModuleList(reversed(predictors[:-1]))
        network.fuse.convs = nn.ModuleList()
        before = _fused(width, FUSED - 1)
        for level in reversed(range(FUSED - 1)):
            own = width << min(level, OWN)
            beside = _fused(width, level) + own
            network.fuse.convs.append(
                nn.ModuleList(
                    [
                        _Convolution(before, own, 2, active=False),
                        _Convolution(beside, own, 3),
                        _Convolution(own, own, 3),
                    ]
                )
            )
            before = own
        network.fuse.output_conv = nn.Conv2d(width, _COLOURS, 1)
        return network

    def answer(self, network: Any, pixels: Tensor, **asked: Any) -> Mapping[str, Tensor]:
        """Return "frames" between each frame of pixels (B,3,H,W) in 0…1 and the next, ((B−1)·S,3,H,W).

        asked: `shares`, the S times of each, in 0…1 of the way.
        """
        levels = [_seen(network.extract.extract_sublevels.convs, one) for one in torch.split(pixels, 1)]
        made = []
        for first, second in pairwise(levels):
            there = _motion(network.predict_flow, first, second)
            back = _motion(network.predict_flow, second, first)
            for share in asked["shares"]:
                made.append(_between(network.fuse, (first, second), (there, back), share))
        return {"frames": torch.cat(made)}


@dataclass(frozen=True, slots=True)
class _Level:
    """A frame at one size: its colours and its features."""

    colours: Tensor
    features: Tensor


class _Convolution(nn.Module):
    """A convolution that keeps the size; one of 2×2 has its border at the right and the bottom."""

    def __init__(self, reads: int, writes: int, size: int, *, active: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(reads, writes, size, padding=size // 2 if size % 2 else 0)
        self.even, self.active = size % 2 == 0, active

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.conv(pad(x, (0, 1, 0, 1)) if self.even else x)
        return leaky_relu(made, SLOPE) if self.active else made


def _features(width: int, level: int) -> int:
    """Return how many features a level has: its own, and deeper ones of larger sizes."""
    return sum(width << i for i in range(min(level + 1, SUBLEVELS)))


def _fused(width: int, level: int) -> int:
    return 2 * (_features(width, level) + _COLOURS + _MOTION)


def _predictor(reads: int, width: int, layers: int) -> nn.Module:
    predictor = nn.Module()
    inputs = [reads, *[width] * (layers - 1)]
    last = (_Convolution(width, width // 2, 1), _Convolution(width // 2, _MOTION, 1, active=False))
    predictor._convs = nn.ModuleList([*(_Convolution(one, width, 3) for one in inputs), *last])
    return predictor


def _seen(convolutions: Any, frame: Tensor) -> list[_Level]:
    """Return a frame (1,3,H,W) at all sizes, each half of the one before."""
    sizes = [frame]
    while len(sizes) < LEVELS:
        sizes.append(avg_pool2d(sizes[-1], 2))
    deep: list[list[Tensor]] = []
    for level, x in enumerate(sizes):
        found: list[Tensor] = []
        for layers in list(convolutions)[: LEVELS - level]:
            x = layers(avg_pool2d(x, 2) if found else x)
            found.append(x)
        deep.append(found)
    return [
        _Level(colours, torch.cat([deep[level - i][i] for i in range(min(level + 1, SUBLEVELS))], dim=1))
        for level, colours in enumerate(sizes)
    ]


def _motion(predictors: Any, first: Sequence[_Level], second: Sequence[_Level]) -> list[Tensor]:
    """Return where each pixel of the first frame is in the second (1,2,h,w), in pixels, at the sizes that are fused."""
    found: list[Tensor] = []
    for level in reversed(range(LEVELS)):
        predictor = predictors._predictors[OWN - 1 - level] if level < OWN else predictors._predictor
        here, there = first[level].features, second[level].features
        if found:
            coarse = 2 * interpolate(found[-1], size=here.shape[2:], mode="bilinear")
            there = _moved(there, coarse)
        x = torch.cat([here, there], dim=1)
        for layer in predictor._convs:
            x = layer(x)
        found.append(coarse + x if found else x)
    return found[::-1][:FUSED]


def _moved(image: Tensor, motion: Tensor) -> Tensor:
    """Return what is in an image (1,C,H,W) where motion (1,2,H,W) leads each pixel, in pixels."""
    height, width = motion.shape[2:]
    places = [
        torch.linspace(-(1 - 1 / side), 1 - 1 / side, side, dtype=torch.float32, device=image.device)
        for side in (width, height)
    ]
    x, y = (motion[:, i].float() / (side / 2) for i, side in enumerate((width, height)))
    grid = torch.stack([places[0] + x, places[1][:, None] + y], dim=-1)
    return grid_sample(image.float(), grid, padding_mode="border", align_corners=False).to(image.dtype)


def _between(
    fuse: Any, frames: tuple[list[_Level], list[_Level]], motions: tuple[list[Tensor], list[Tensor]], share: float
) -> Tensor:
    """Return the frame (1,3,H,W) at a share of the way. motions: from the first to the second, and back."""
    levels = []
    for first, second, there, back in zip(*frames, *motions, strict=False):
        # A pixel of the frame between goes back to the first by a part of the motion back, and on by the rest.
        behind, ahead = back * share, there * (1 - share)
        seen = [
            _moved(torch.cat([one.colours, one.features], dim=1), motion)
            for one, motion in ((first, behind), (second, ahead))
        ]
        levels.append(torch.cat([*seen, behind, ahead], dim=1))
    x = levels[-1]
    for level, (enlarged, joined, last) in zip(reversed(levels[:-1]), fuse.convs, strict=True):
        x = enlarged(interpolate(x, size=level.shape[2:], mode="nearest"))
        x = last(joined(torch.cat([level, x], dim=1)))
    made: Tensor = fuse.output_conv(x)
    return made
