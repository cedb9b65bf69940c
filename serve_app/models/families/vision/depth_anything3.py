"""Depth Anything 3: depths of images, with the sky or a confidence, and of several views with their cameras.

The Small, Base and Large models have DINOv2's layers look at all views in turn with each alone, and a head of depths
and confidences; the Mono and Metric models a plain DINOv2, and a head of depths and the sky. Reads the file that
ComfyUI's models are published as. Source: Lin et al. 2025, arXiv:2511.10647.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from serve_app.models.families.family import ImageModelFamily, Located
from serve_app.models.families.vision.cameras import decoded_cameras
from serve_app.models.families.vision.dinov2 import (
    PATCH,
    Dinov2,
    Rotation,
    attended,
    embedded,
    layers_of,
    rotation_of,
)
from serve_app.models.families.vision.dpt import DptHead, dpt_names
from serve_app.models.files.layout import Place, Table, places
from serve_app.models.files.tensors import Tensors

MARK = "backbone.embeddings.patch_embeddings.projection.weight"
REFERENCED_FROM = 3
"""The number of views from which one of them is chosen as the reference."""
TAPS: Mapping[tuple[int, bool], tuple[int, ...]] = {
    (12, False): (5, 7, 9, 11),
    (12, True): (5, 7, 9, 11),
    (24, False): (4, 11, 17, 23),
    (24, True): (11, 15, 19, 23),
}
"""The layers whose states the head reads, by their number and whether views are looked at together."""
STRATEGIES = ("saddle_balanced", "saddle_sim_range", "first", "middle")


@dataclass(frozen=True, slots=True)
class DepthAnything3(ImageModelFamily):
    """A network of Depth Anything 3. channels: of its head's levels; features: of their fusion.

    sky: whether it tells the sky; confident: whether it says how sure it is; cameras: whether it finds them.
    """

    title = "Depth Anything 3"

    encoder: Dinov2
    channels: tuple[int, ...]
    features: int
    sky: bool
    confident: bool
    cameras: bool

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        whole = files[0]
        if MARK in whole.shapes:
            family = cls.probe(whole)
            table = family.table()
            # What finds cameras by rays, and what reads known cameras, is not run.
            own = {name: shape for name, shape in whole.shapes.items() if places(name, table)}
            yield Located(family, Tensors(own, whole.where))

    @classmethod
    def probe(cls, tensors: Tensors) -> DepthAnything3:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        backbone = tensors.within("backbone.")
        together = "embeddings.camera_token" in backbone.shapes
        normed = (
            number
            for number in range(backbone.count("encoder.layer."))
            if f"encoder.layer.{number}.attention.q_norm.weight" in backbone.shapes
        )
        encoder = Dinov2.probe(backbone, next(normed, None) if together else None)
        if (encoder.layers, together) not in TAPS or (together and encoder.normed_from is None):
            known = sorted({layers for layers, _ in TAPS})
            raise tensors.unsupported(
                f"holds a Depth Anything 3 of {encoder.layers} layers; supported are {' and '.join(map(str, known))}"
            )
        outputs = tensors.shape("head.scratch.output_conv2.2.weight")[0]
        return cls(
            encoder,
            tuple(tensors.shape(f"head.projects.{level}.weight")[0] for level in range(4)),
            tensors.shape("head.scratch.refinenet1.out_conv.weight")[0],
            sky="head.scratch.sky_output_conv2.0.weight" in tensors.shapes,
            confident=outputs > 1,
            cameras=together and "cam_dec.fc_t.weight" in tensors.shapes,
        )

    @property
    def together(self) -> bool:
        """Whether its layers look at several views together."""
        return self.encoder.normed_from is not None

    @property
    def taps(self) -> tuple[int, ...]:
        return TAPS[self.encoder.layers, self.together]

    @property
    def width(self) -> int:
        """Of the states that the head reads, and cameras are decoded from."""
        return self.encoder.width * (2 if self.together else 1)

    def table(self, tensors: Tensors | None = None) -> Table:
        names: dict[str, str | tuple[Place, ...]] = dict(self.encoder.names("backbone."))
        names |= dpt_names("head.", sky=self.sky, normed=self.together)
        return names | ({"cam_dec": "cameras"} if self.cameras else {})

    def build(self) -> nn.Module:
        network = nn.Module()
        network.backbone = self.encoder.build()
        if self.together:
            tokens = torch.zeros(1, 2, self.encoder.width)
            network.backbone.embeddings.camera_token = nn.Parameter(tokens)  # type: ignore[union-attr]
        network.head = DptHead(
            self.width,
            self.channels,
            self.features,
            outputs=2 if self.confident else 1,
            sky=self.sky,
            placed=self.together,
        )
        if self.cameras:
            network.cameras = CameraDecoder(self.width)
        return network

    def answer(self, network: Any, pixels: Tensor, **asked: Any) -> Mapping[str, Tensor]:
        """Return "depth" (B,H,W) of normalised pixels (B,3,H,W), "sky" and "confidence" where the network tells them.

        asked: `views`, whether they are of one scene; then `strategy`, one of STRATEGIES, chooses the reference, and
        "extrinsics" (B,3,4), world to camera, and "intrinsics" (B,3,3), in pixels, are the cameras of several.
        """
        views = bool(asked.get("views"))
        scenes = pixels.unsqueeze(0 if views else 1)
        states, cameras = self._states(network.backbone, scenes, asked.get("strategy", STRATEGIES[0]))
        made: dict[str, Tensor] = network.head(states, pixels.shape[-2], pixels.shape[-1])
        if self.cameras and scenes.shape[1] > 1:
            made |= decoded_cameras(network.cameras(cameras)[0], pixels.shape[-2], pixels.shape[-1])
        return made

    def _states(self, backbone: Any, scenes: Tensor, strategy: str) -> tuple[list[Tensor], Tensor]:
        """Return the states (B·S,N,D) that the head reads, of scenes (B,S,3,H,W), and the last of the cameras' tokens.

        Those are (B,S,D).
        """
        batch, views = scenes.shape[:2]
        x = torch.unflatten(embedded(backbone, scenes.flatten(0, 1)), 0, (batch, views))
        start = self.encoder.normed_from if self.encoder.normed_from is not None else self.encoder.layers
        alone, jointly = _rotations(scenes, x.dtype) if self.together else (None, None)
        order, own, found = None, x, []
        for number, layer in enumerate(layers_of(backbone)[: max(self.taps) + 1]):
            if number == start - 1 and views >= REFERENCED_FROM:
                order = _reference_first(x, strategy)
                x, own = _ordered(x, order), _ordered(own, order)
            if number == start:
                first, others = torch.split(backbone.embeddings.camera_token.to(x.dtype), 1, dim=1)
                tokens = torch.cat([first, others.expand(-1, views - 1, -1)], dim=1)
                x = torch.cat([tokens.expand(batch, -1, -1).unsqueeze(2), x[:, :, 1:]], dim=2)
            turned = number >= start
            if turned and number % 2:
                x = torch.unflatten(attended(layer, x.flatten(1, 2), jointly), 1, (views, -1))
            else:
                x = attended(layer, x.flatten(0, 1), alone if turned else None)
                x = torch.unflatten(x, 0, (batch, views))
                own = x
            if number in self.taps:
                seen = torch.cat([own, x], dim=-1) if self.together else x
                found.append(seen if order is None else _ordered(seen, order.argsort(dim=1)))
        return [self._normed(backbone, seen)[:, :, 1:].flatten(0, 1) for seen in found], found[-1][:, :, 0]

    def _normed(self, backbone: Any, seen: Tensor) -> Tensor:
        """Return states with the encoder's last norm: of those that all views share in, where there are two halves."""
        own, shared = torch.split(seen, [seen.shape[-1] - self.encoder.width, self.encoder.width], dim=-1)
        return torch.cat([own, backbone.layernorm(shared)], dim=-1)


class CameraDecoder(nn.Module):
    """Decodes the states of cameras' tokens (B,S,D) to (B,S,9): translation, quaternion and two angles of view."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.fc_t, self.fc_qvec = nn.Linear(width, 3), nn.Linear(width, 4)
        self.fc_fov = nn.Sequential(nn.Linear(width, 2), nn.ReLU())

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.backbone(tokens)
        return torch.cat([self.fc_t(x), self.fc_qvec(x), relu(self.fc_fov(x))], dim=-1)


def _rotations(scenes: Tensor, dtype: torch.dtype) -> tuple[Rotation, Rotation]:
    """Return the rotations of a view's tokens among their own, and of all views' tokens, where a patch has no place.

    The image's token is at 0, patches from 1 on.
    """
    rows, columns = (side // PATCH for side in scenes.shape[-2:])
    down, across = torch.meshgrid(
        torch.arange(rows, device=scenes.device), torch.arange(columns, device=scenes.device), indexing="ij"
    )
    grid = torch.stack([down, across], dim=-1).flatten(0, 1) + 1
    nothing = torch.zeros_like(grid[:1])
    alone = torch.cat([nothing, grid])
    jointly = torch.cat([nothing, torch.ones_like(grid)]).repeat(scenes.shape[1], 1)
    return rotation_of(alone, dtype), rotation_of(jointly, dtype)


def _ordered(x: Tensor, order: Tensor) -> Tensor:
    """Return views (B,S,…) in an order (B,S)."""
    return x[torch.arange(len(x), device=x.device)[:, None], order]


def _reference_first(x: Tensor, strategy: str) -> Tensor:
    """Return the order (B,S) of views with the reference first, by the states (B,S,N,D) of their images' tokens.

    saddle_balanced: the view most average in likeness, length and variance. saddle_sim_range: the one that is most
    unequally alike the others.
    """
    views = x.shape[1]
    tokens = x[:, :, 0]
    lengths = tokens.norm(dim=-1)
    unit = tokens / lengths[..., None]
    alike = unit @ unit.transpose(1, 2) - torch.eye(views, device=x.device)
    match strategy:
        case "first":
            chosen = torch.zeros(len(x), dtype=torch.long, device=x.device)
        case "middle":
            chosen = torch.full((len(x),), views // 2, device=x.device)
        case "saddle_sim_range":
            chosen = (alike.amax(-1) - alike.amin(-1)).argmax(1)
        case _:
            measures = (alike.sum(-1) / (views - 1), lengths, unit.var(-1))
            chosen = torch.stack([(_spread(one) - 0.5).abs() for one in measures]).sum(0).argmin(1)
    numbers = torch.arange(views, device=x.device).expand(len(x), -1)
    # The reference, then the others as they are.
    return torch.where(numbers == chosen[:, None], -1, numbers).argsort(dim=1)


def _spread(measure: Tensor) -> Tensor:
    """Return a measure (B,S) stretched to 0…1."""
    least, most = measure.amin(1, keepdim=True), measure.amax(1, keepdim=True)
    return (measure - least) / (most - least + 1e-8)
