"""USO's style transfer for Flux.1: SigLIP's image features, at three depths, as tokens of the text.

Source: Wu et al. 2025, arXiv:2508.18966; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from serve_app.errors import NodeError
from serve_app.models.control.dit_control import SideFamily, check_family
from serve_app.models.control.model_control import ControlImages, ModelPatchNetwork
from serve_app.models.families.dit.flux import Flux
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors

DEPTHS = ("high", "mid", "low")
"""The parts of the network by the depth that they read, from the last layers to the first, as tokens are ordered."""

_PREFIX = "feature_embedder."
_MARK = f"{_PREFIX}mid_layer_norm.bias"


@dataclass(frozen=True, slots=True)
class Uso(SideFamily):
    """A network. width: of a token; reads: width and number of the states; tokens: how many a depth becomes."""

    width: int
    reads: tuple[int, int]
    tokens: int

    @classmethod
    def find(cls, file: Checkpoint) -> Self | None:
        if _MARK not in file.shapes:
            return None
        tensors = Tensors(file.shapes, file.where)
        width, read = tensors.shape(f"{_PREFIX}mid_projection.weight")
        made, patches = tensors.shape(f"{_PREFIX}mid_embedding_linear.0.weight")
        return cls(width, (read, patches), made)

    def table(self) -> Table:
        names = {"embedding_linear.0": "gather", "layer_norm": "norm", "projection": "project"}
        return {f"{_PREFIX}{depth}_{theirs}": f"{depth}.{ours}" for depth in DEPTHS for theirs, ours in names.items()}

    def build(self) -> nn.Module:
        return UsoNetwork(self)


class _Depth(nn.Module):
    def __init__(self, family: Uso) -> None:
        super().__init__()
        read, patches = family.reads
        self.gather = nn.Linear(patches, family.tokens)
        self.norm = nn.LayerNorm(read)
        self.project = nn.Linear(read, family.width)

    def forward(self, states: Tensor) -> Tensor:
        gathered = nn.functional.silu(self.gather(states.transpose(1, 2))).transpose(1, 2)
        made: Tensor = self.project(self.norm(gathered))
        return made


class UsoNetwork(ModelPatchNetwork):
    """A network with a part for each depth."""

    def __init__(self, family: Uso) -> None:
        super().__init__()
        self.family = family
        for depth in DEPTHS:
            self.add_module(depth, _Depth(family))

    def check(self, name: str, images: ControlImages, backbone: Any) -> None:
        check_family(name, Flux(self.family.width, 1, 1, 1, 1, 1), backbone)
        if not images.seen:
            raise NodeError(f"'{name}' reads SigLIP's image features: apply it by USOStyleReference")
        for states in images.seen:
            if (states.shape[2], states.shape[1]) != self.family.reads:
                wide, patches = self.family.reads
                raise NodeError(
                    f"the image features are {states.shape[1]} states {states.shape[2]} wide; '{name}' reads "
                    f"{patches} states {wide} wide: it goes with another image encoder"
                )

    def read(self, images: ControlImages, size: Sequence[int]) -> Tensor:
        """Return the style as tokens (N,n,W) of the text, whatever the latents' size."""
        parts = [self.get_submodule(depth) for depth in DEPTHS]
        weight = self.get_parameter(f"{DEPTHS[0]}.project.weight")
        made = [part(states.to(weight)) for part, states in zip(parts, reversed(images.seen), strict=True)]
        return torch.cat(made, dim=1)
