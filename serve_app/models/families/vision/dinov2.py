"""DINOv2, the image encoder inside of networks that estimate depth and geometry, for images of any size.

Run by the layers of transformers' Dinov2Model; positions, attention and the rotations that Depth Anything 3 adds are
computed here. Sources: Oquab et al. 2023, arXiv:2304.07193; Lin et al. 2025, arXiv:2511.10647.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention
from transformers.models.dinov2.configuration_dinov2 import Dinov2Config
from transformers.models.dinov2.modeling_dinov2 import Dinov2Model

from serve_app.models.files.layout import Place
from serve_app.models.files.tensors import Tensors

PATCH = 14
"""Pixels along a side of a patch."""
HEAD = 64
EPS = 1e-6
ROTATION_BASE = 100.0
_OFFSET = 0.1
"""What the authors add to a number of patches, so that a scale in floating point gives that many."""

Rotation: TypeAlias = tuple[Tensor, Tensor]
"""Cosines and sines (…,N,HEAD) by which queries and keys are rotated."""


@dataclass(frozen=True, slots=True)
class Dinov2:
    """An encoder. side: patches along a side of the image that its positions are of; normed_from: the first layer that
    normalises queries and keys, None for none.
    """

    width: int
    layers: int
    side: int
    gated: bool = False
    normed_from: int | None = None

    @classmethod
    def probe(cls, tensors: Tensors, normed_from: int | None = None) -> Dinov2:
        """Read the size off tensors named as by transformers or by the authors.

        Errors: ModelFileError for an unsupported variant.
        """
        layers, positions, gate = (
            ("blocks.", "pos_embed", "mlp.w12")
            if _by_authors(tensors)
            else ("encoder.layer.", "embeddings.position_embeddings", "mlp.weights_in")
        )
        patches, width = tensors.shape(positions)[1:]
        side = isqrt(patches - 1)
        if width % HEAD or side * side != patches - 1:
            raise tensors.unsupported(f"has a DINOv2 that is {width} wide and has {patches} positions")
        gated = f"{layers}0.{gate}.weight" in tensors.shapes
        return cls(width, tensors.count(layers), side, gated, normed_from)

    @property
    def heads(self) -> int:
        return self.width // HEAD

    def names(self, prefix: str, tensors: Tensors | None = None) -> Iterator[tuple[str, str | tuple[Place, ...]]]:
        """Yield the names in files and the network's, both under a prefix.

        They are those of earlier releases of transformers, or the authors' where a file's tensors, without the prefix,
        have them.
        """
        if tensors is not None and _by_authors(tensors):
            yield from self._authors_names(prefix)
            return
        file = network = prefix
        for name in ("embeddings", "layernorm"):
            yield f"{file}{name}", f"{network}{name}"
        for number in range(self.layers):
            theirs, ours = f"{file}encoder.layer.{number}", f"{network}encoder.layer.{number}"
            yield theirs, ours
            for one in ("query", "key", "value"):
                yield f"{theirs}.attention.attention.{one}", f"{ours}.attention.{one[0]}_proj"
            yield f"{theirs}.attention.output.dense", f"{ours}.attention.o_proj"
            if self.gated:
                yield from self._gates(f"{theirs}.mlp.weights_in", f"{ours}.mlp")
                yield f"{theirs}.mlp.weights_out", f"{ours}.mlp.down_proj"

    def _authors_names(self, prefix: str) -> Iterator[tuple[str, str | tuple[Place, ...]]]:
        tensors = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
        modules = {"patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm"}
        for theirs, ours in (tensors | modules).items():
            yield prefix + theirs, prefix + ours
        for number in range(self.layers):
            theirs, ours = f"{prefix}blocks.{number}", f"{prefix}encoder.layer.{number}"
            yield theirs, ours
            for place in (1, 2):
                yield f"{theirs}.ls{place}.gamma", f"{ours}.layer_scale{place}.lambda1"
            yield f"{theirs}.attn.proj", f"{ours}.attention.o_proj"
            for kind in ("weight", "bias"):
                yield (
                    f"{theirs}.attn.qkv.{kind}",
                    tuple(
                        Place(f"{ours}.attention.{one}_proj.{kind}", (i * self.width, (i + 1) * self.width))
                        for i, one in enumerate("qkv")
                    ),
                )
            if self.gated:
                yield from self._gates(f"{theirs}.mlp.w12", f"{ours}.mlp")
                yield f"{theirs}.mlp.w3", f"{ours}.mlp.down_proj"

    def _gates(self, theirs: str, ours: str) -> Iterator[tuple[str, tuple[Place, ...]]]:
        inside = (int(4 * self.width * 2 / 3) + 7) // 8 * 8
        for kind in ("weight", "bias"):
            rows = ((0, inside), (inside, 2 * inside))
            yield (
                f"{theirs}.{kind}",
                tuple(Place(f"{ours}.{one}_proj.{kind}", own) for one, own in zip(("gate", "up"), rows, strict=True)),
            )

    def build(self) -> nn.Module:
        """Return the network, on the default device."""
        network: nn.Module = Dinov2Model(
            Dinov2Config(
                hidden_size=self.width,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                layer_norm_eps=EPS,
                patch_size=PATCH,
                image_size=self.side * PATCH,
                use_swiglu_ffn=self.gated,
                use_mask_token=False,
            )
        )
        layers: Any = network.encoder.layer  # type: ignore[union-attr]
        for layer in layers[self.layers if self.normed_from is None else self.normed_from :]:
            layer.attention.q_norm, layer.attention.k_norm = nn.LayerNorm(HEAD), nn.LayerNorm(HEAD)
        return network


def _by_authors(tensors: Tensors) -> bool:
    return "pos_embed" in tensors.shapes


def embedded(network: Any, pixels: Tensor) -> Tensor:
    """Return the states (B,1+N,D) of pixels (B,3,H,W) before the first layer; sides are multiples of PATCH."""
    own = network.embeddings
    x = own.patch_embeddings.projection(pixels).flatten(2).transpose(1, 2)
    x = torch.cat([own.cls_token.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
    return x + _positions(own.position_embeddings, pixels.shape[-2] // PATCH, pixels.shape[-1] // PATCH).to(x.dtype)


def _positions(positions: Tensor, rows: int, columns: int) -> Tensor:
    """Return the embeddings (1,1+rows·columns,D) of a grid, in float32 where they are interpolated."""
    count = positions.shape[1] - 1
    if rows * columns == count:
        return positions
    side = isqrt(count)
    grid = torch.unflatten(positions[:, 1:].float(), 1, (side, side)).movedim(-1, 1)
    scales = ((rows + _OFFSET) / side, (columns + _OFFSET) / side)
    grid = interpolate(grid, scale_factor=scales, mode="bicubic")
    return torch.cat([positions[:, :1].float(), grid.flatten(2).transpose(1, 2)], dim=1)


def attended(layer: Any, x: Tensor, rotation: Rotation | None = None) -> Tensor:
    """Return a layer's states (B,N,D) after it."""
    own, normed = layer.attention, layer.norm1(x)
    query, key, value = (
        torch.unflatten(made(normed), -1, (-1, HEAD)).transpose(1, 2) for made in (own.q_proj, own.k_proj, own.v_proj)
    )
    if hasattr(own, "q_norm"):
        query, key = own.q_norm(query), own.k_norm(key)
    if rotation is not None:
        query, key = _rotated(query, rotation), _rotated(key, rotation)
    mixed = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    x = x + layer.layer_scale1(own.o_proj(mixed))
    made: Tensor = x + layer.layer_scale2(layer.mlp(layer.norm2(x)))
    return made


def rotation_of(positions: Tensor, dtype: torch.dtype) -> Rotation:
    """Return the rotation of tokens at positions (…,N,2), row and column, each of which turns a half of a head."""
    half = HEAD // 2
    exponents = torch.arange(0, half, 2, device=positions.device).float() / half
    angles = (positions[..., None].float() / ROTATION_BASE**exponents).to(dtype)
    angles = torch.cat([angles, angles], dim=-1).flatten(-2)
    return angles.cos(), angles.sin()


def _rotated(x: Tensor, rotation: Rotation) -> Tensor:
    """Return queries or keys (B,heads,N,HEAD) rotated."""
    cosines, sines = (one.unsqueeze(-3) for one in rotation)
    first, second = torch.unflatten(x, -1, (2, 2, -1)).unbind(-2)
    turned = torch.stack([-second, first], dim=-2).flatten(-3)
    return x * cosines + turned * sines


def layers_of(network: Any) -> nn.ModuleList:
    """Return an encoder's layers, in order."""
    layers: nn.ModuleList = network.encoder.layer
    return layers


def features(network: Any, pixels: Tensor, taps: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """Return normalised states of patches (B,N,D) and of the image (B,D) after each of some layers."""
    x, found = embedded(network, pixels), []
    for number, layer in enumerate(layers_of(network)[: max(taps) + 1]):
        x = attended(layer, x)
        if number in taps:
            normed = network.layernorm(x)
            found.append((normed[:, 1:], normed[:, 0]))
    return found
