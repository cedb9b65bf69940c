"""MoGe: a map of points in space of an image, up to its focal length and distance, with a mask of what has a place.

The second edition also says the scale in metres, and normals where its file has them. Reads the authors' files.
Sources: Wang et al. 2024, arXiv:2410.19115 (first edition); 2025, arXiv:2507.02546 (second).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from serve_app.models.families.family import ImageModelFamily, Located
from serve_app.models.families.vision.convolutions import (
    ConvStack,
    StackShape,
    replicated,
    resampled,
    residual,
    with_places,
)
from serve_app.models.families.vision.dinov2 import PATCH, Dinov2, features
from serve_app.models.files.layout import Place, Table, places
from serve_app.models.files.tensors import Tensors

MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TAPS = 4
LEVELS = 5
_FIRST, _SECOND = "head.upsample_blocks.0.0.0.weight", "encoder.output_projections.0.weight"
_REFINED = "refiner."
_PROJECTED, _LAST = 512, 32
_HEADS = ("points_head", "mask_head", "normal_head")


@dataclass(frozen=True, slots=True)
class FirstHead:
    """The first edition's head. widths: of its stages; blocks: in each; hidden: by how much their insides are wider."""

    widths: tuple[int, ...]
    blocks: int
    hidden: int


@dataclass(frozen=True, slots=True)
class SecondHead:
    """The second edition's neck and heads. projected: width of what the encoder gives; scale: widths of its layers."""

    projected: int
    neck: StackShape
    heads: Mapping[str, StackShape]
    scale: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MoGe(ImageModelFamily):
    """A network of MoGe."""

    title = "MoGe"
    dtypes = (torch.float32,)

    encoder: Dinov2
    head: FirstHead | SecondHead

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        whole = files[0]
        if _FIRST in whole.shapes or _SECOND in whole.shapes:
            family = cls.probe(whole)
            table = family.table(whole)
            # Constants by which images are normalised, and a token of training, are left out.
            own = {name: shape for name, shape in whole.shapes.items() if places(name, table)}
            yield Located(family, Tensors(own, whole.where))

    @classmethod
    def probe(cls, tensors: Tensors) -> MoGe:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported edition."""
        if tensors.has(_REFINED):
            raise tensors.unsupported("holds a MoGe 3, which refines depths by a sparse network; supported are 1 and 2")
        if _SECOND not in tensors.shapes:
            stages = tensors.count("head.upsample_blocks.")
            widths = tuple(tensors.shape(f"head.upsample_blocks.{i}.0.0.weight")[1] for i in range(stages))
            hidden = tensors.shape("head.upsample_blocks.0.1.layers.2.weight")[0] // widths[0]
            blocks = tensors.count("head.upsample_blocks.0.") - 1
            return cls(Dinov2.probe(tensors.within("backbone.")), FirstHead(widths, blocks, max(hidden, 1)))
        scale = [tensors.shape("scale_head.0.weight")]
        while (deeper := tensors.shapes.get(f"scale_head.{2 * len(scale)}.weight")) is not None:
            scale.append(deeper)
        return cls(
            Dinov2.probe(tensors.within("encoder.backbone.")),
            SecondHead(
                tensors.shape(_SECOND)[0],
                StackShape.probe(tensors.within("neck.")),
                {one: StackShape.probe(tensors.within(f"{one}.")) for one in _HEADS if tensors.has(f"{one}.")},
                (scale[0][1], *(shape[0] for shape in scale)),
            ),
        )

    @property
    def edition(self) -> int:
        return 1 if isinstance(self.head, FirstHead) else 2

    @property
    def taps(self) -> tuple[int, ...]:
        """The layers that are read: the last of the first edition's, evenly spaced ones of the second's."""
        layers = self.encoder.layers
        if self.edition == 1:
            return tuple(range(layers - TAPS, layers))
        return tuple(layers // TAPS * (i + 1) - 1 for i in range(TAPS))

    def table(self, tensors: Tensors | None = None) -> Table:
        prefix = "backbone." if self.edition == 1 else "encoder.backbone."
        names: dict[str, str | tuple[Place, ...]] = dict(
            self.encoder.names(prefix, None if tensors is None else tensors.within(prefix))
        )
        if isinstance(self.head, FirstHead):
            return names | {"head": "head"}
        own = ("encoder.output_projections", "neck", *self.head.heads, "scale_head")
        return names | {one: one for one in own}

    def build(self) -> nn.Module:
        network, width = nn.Module(), self.encoder.width
        if isinstance(self.head, FirstHead):
            network.backbone = self.encoder.build()
            network.head = _first_head(self.head, width)
            return network
        network.encoder = nn.Module()
        network.encoder.backbone = self.encoder.build()
        network.encoder.output_projections = nn.ModuleList(
            nn.Conv2d(width, self.head.projected, 1) for _ in range(TAPS)
        )
        network.neck = ConvStack(self.head.neck)
        for name, shape in self.head.heads.items():
            network.add_module(name, ConvStack(shape))
        layers: list[nn.Module] = []
        for reads, writes in zip(self.head.scale, self.head.scale[1:], strict=False):
            layers += [nn.Linear(reads, writes), nn.ReLU()]
        network.scale_head = nn.Sequential(*layers[:-1])
        return network

    def answer(self, network: Any, pixels: Tensor, **asked: Any) -> Mapping[str, Tensor]:
        """Return "points" (B,H,W,3), before they have a focal length, and "mask" (B,H,W) of pixels (B,3,H,W) in 0…1.

        The second edition also has "scale" (B,), in metres, and where the file has them "normal" (B,H,W,3). asked:
        `tokens`, about how many patches it looks at.
        """
        tokens: int = asked["tokens"]
        return (self._first if self.edition == 1 else self._second)(network, pixels, tokens)

    def _first(self, network: Any, pixels: Tensor, tokens: int) -> dict[str, Tensor]:
        height, width = pixels.shape[-2:]
        scale = (tokens * PATCH**2 / (height * width)) ** 0.5
        sides = (int(height * scale), int(width * scale))
        x = _normalised(interpolate(pixels, sides, mode="bicubic", antialias=True))
        rows, columns = (side // PATCH for side in sides)
        whole = interpolate(x, (rows * PATCH, columns * PATCH), mode="bilinear", antialias=True)
        states = [patches for patches, _ in features(network.backbone, whole, self.taps)]
        head, aspect = network.head, sides[1] / sides[0]
        x = _projected(head.projects, states, rows, columns)
        for block in head.upsample_blocks:
            x = block(with_places(x, aspect))
        x = with_places(interpolate(x, sides, mode="bilinear"), aspect)
        points, mask = (interpolate(block(x).float(), (height, width), mode="bilinear") for block in head.output_block)
        return {"points": _in_space(points), "mask": mask.squeeze(1)}

    def _second(self, network: Any, pixels: Tensor, tokens: int) -> dict[str, Tensor]:
        size = height, width = pixels.shape[-2:]
        aspect = width / height
        rows, columns = round((tokens / aspect) ** 0.5), round((tokens * aspect) ** 0.5)
        whole = _normalised(interpolate(pixels, (rows * PATCH, columns * PATCH), mode="bilinear", antialias=True))
        found = features(network.encoder.backbone, whole, self.taps)
        x = _projected(network.encoder.output_projections, [patches for patches, _ in found], rows, columns)
        nothing = [x.new_zeros(len(x), 0, rows << level, columns << level) for level in range(1, LEVELS)]
        levels = network.neck([with_places(one, aspect) for one in (x, *nothing)])
        maps = {
            name.removesuffix("_head"): interpolate(network.get_submodule(name)(levels)[-1], size, mode="bilinear")
            for name in _HEADS
            if hasattr(network, name)
        }
        made = {
            "points": _in_space(maps["points"]),
            "mask": maps["mask"].squeeze(1).sigmoid(),
            "scale": network.scale_head(found[-1][1]).squeeze(1).exp(),
        }
        return made | ({"normal": normalize(maps["normal"].movedim(1, -1), dim=-1)} if "normal" in maps else {})


def _first_head(shape: FirstHead, reads: int) -> nn.Module:
    head = nn.Module()
    head.projects = nn.ModuleList(nn.Conv2d(reads, _PROJECTED, 1) for _ in range(TAPS))
    head.upsample_blocks = nn.ModuleList(
        nn.Sequential(
            resampled(before + 2, width, transposed=True),
            *(residual(width, shape.hidden * width, normed=True) for _ in range(shape.blocks)),
        )
        for before, width in zip((_PROJECTED, *shape.widths), shape.widths, strict=False)
    )
    head.output_block = nn.ModuleList(
        nn.Sequential(replicated(shape.widths[-1] + 2, _LAST), nn.ReLU(), nn.Conv2d(_LAST, writes, 1))
        for writes in (3, 1)
    )
    return head


def _normalised(pixels: Tensor) -> Tensor:
    channels = zip(pixels.unbind(1), MEAN, SPREAD, strict=True)
    return torch.stack([(channel - mean) / spread for channel, mean, spread in channels], dim=1)


def _projected(layers: nn.ModuleList, states: Sequence[Tensor], rows: int, columns: int) -> Tensor:
    """Return the sum (B,C,rows,columns) of layers' states (B,N,D), each projected by its own layer."""
    made = [
        project(torch.unflatten(x.transpose(1, 2), 2, (rows, columns)).contiguous())
        for project, x in zip(layers, states, strict=True)
    ]
    return torch.stack(made, dim=1).sum(1)


def _in_space(maps: Tensor) -> Tensor:
    """Return points (B,H,W,3) of maps (B,3,H,W) of slopes and of the logarithms of depths."""
    slopes, depth = torch.split(maps.movedim(1, -1), [2, 1], dim=-1)
    depth = depth.exp()
    return torch.cat([slopes * depth, depth], dim=-1)
