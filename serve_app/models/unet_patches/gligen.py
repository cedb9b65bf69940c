"""GLIGEN's networks: their files, and the backbones that they fit. `grounding` applies them in a forward.

Source: Li et al. 2023, arXiv:2301.07093, equations 3 to 8, and the layout of the published files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from diffusers.models.attention import GatedSelfAttentionDense
from diffusers.models.embeddings import GLIGENTextBoundingboxProjection
from torch import Tensor, nn

from serve_app.errors import NodeError
from serve_app.models.control.dit_control import SideFamily
from serve_app.models.control.model_control import ControlImages, ModelPatch
from serve_app.models.families.unet.unet_functions import transformers
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.unet_patches.grounding import ActiveGrounding, GroundingNetwork
from serve_app.recipe.controls import Grounding
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.transfer import to_device
from serve_app.values import Conditioning

MOST_BOXES = 30
"""Number of boxes in training; missing ones are padded."""
SD1_WIDTH, HEADS, HEAD_WIDTH = 768, 8, 64
"""Of a box's token, in files for SD 1.x, whose layers have so many heads; the heads of others are so wide."""
_ORDER = ("input_blocks", "middle_block", "output_blocks")
_LAYER = re.compile(rf"({'|'.join(_ORDER)})\.(\d+)\..*\.fuser")
_TEXT = "position_net.null_positive_feature"


@dataclass(frozen=True, slots=True)
class Gligen(SideFamily):
    """A network. layers: each one's name in the file and its width, in the UNet's order.

    text: the width of a box's text; width: of its token.
    """

    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float16,)

    layers: tuple[tuple[str, int], ...]
    text: int
    width: int

    @classmethod
    def find(cls, file: Checkpoint) -> Self | None:
        if _TEXT not in file.shapes:
            return None
        tensors = Tensors(file.shapes, file.where)
        owners = {name.removesuffix(".linear.weight") for name in file.shapes if name.endswith(".fuser.linear.weight")}
        found = [(match, owner) for owner in owners if (match := _LAYER.fullmatch(owner))]
        if not found:
            raise tensors.unsupported("has GLIGEN's positions and none of its layers")
        in_order = sorted(found, key=lambda one: (_ORDER.index(one[0][1]), int(one[0][2]), one[1]))
        layers = tuple((owner, tensors.shape(f"{owner}.linear.weight")[0]) for _, owner in in_order)
        return cls(layers, tensors.shape(_TEXT)[0], tensors.shape("position_net.linears.4.weight")[0])

    def table(self) -> Table:
        layers = {owner: f"layers.{number}" for number, (owner, _) in enumerate(self.layers)}
        return {**layers, "position_net": "positions"}

    def build(self) -> nn.Module:
        return GligenNetwork(self)


class GligenNetwork(GroundingNetwork):
    """A network on its device."""

    def __init__(self, family: Gligen) -> None:
        super().__init__()
        self.family = family
        self.layers = nn.ModuleList(
            GatedSelfAttentionDense(width, family.width, *_heads(width, family.width)) for _, width in family.layers
        )
        self.positions = GLIGENTextBoundingboxProjection(family.text, family.width)

    def check(self, name: str, images: ControlImages, backbone: Any) -> None:
        raise NodeError(f"'{name}' is a GLIGEN model, which reads texts in boxes and no images")

    def read(self, images: ControlImages, size: Sequence[int]) -> Tensor:
        raise NotImplementedError

    def tokens(self, grounding: Grounding, height: int, width: int) -> Tensor:
        """Return a token for each box on a canvas of height×width cells, (30,D), padded."""
        like = next(self.parameters())
        boxes, texts = torch.zeros(MOST_BOXES, 4), torch.zeros(MOST_BOXES, self.family.text)
        for number, (text, (rows, columns, y, x)) in enumerate(grounding.boxes):
            boxes[number] = torch.tensor([x / width, y / height, (x + columns) / width, (y + rows) / height])
            texts[number] = text.flatten()
        there = torch.arange(MOST_BOXES) < len(grounding.boxes)
        given = (boxes[None], there[None].float(), texts[None])
        made: Tensor = self.positions(*(to_device(t, like.device).to(like.dtype) for t in given))[0]
        return made


def _heads(width: int, token: int) -> tuple[int, int]:
    return (HEADS, width // HEADS) if token == SD1_WIDTH else (width // HEAD_WIDTH, HEAD_WIDTH)


def recipes(conds: Mapping[str, Conditioning]) -> tuple[Recipe, ...]:
    """Return the recipes of all grounding networks in conditionings, each once."""
    given = (options.get("gligen") for conditioning in conds.values() for _, options in conditioning)
    return tuple(dict.fromkeys(grounding.recipe for grounding in given if grounding is not None))


def activated(
    conds: Mapping[str, Conditioning], patches: Mapping[Recipe, ModelPatch], backbone: Any, module: Any
) -> dict[str, Conditioning]:
    """Return the conditionings with each "gligen" as an ActiveGrounding.

    backbone, module: the family's backbone and its network. Errors: NodeError for networks that do not fit it, and for
    too many boxes.
    """
    for recipe, patch in patches.items():
        _check(recipe.name, patch.network, backbone, module)
    made: dict[str, Conditioning] = {}
    for role, conditioning in conds.items():
        made[role] = []
        for cond, options in conditioning:
            grounding = options.get("gligen")
            if grounding is not None:
                _check_boxes(grounding, patches[grounding.recipe])
                options = {**options, "gligen": ActiveGrounding(patches[grounding.recipe], grounding)}
            made[role].append((cond, options))
    return made


def _check(name: str, network: Any, backbone: Any, module: Any) -> None:
    if not isinstance(network, GligenNetwork):
        raise NodeError(f"'{name}' is no GLIGEN model but another model patch")
    widths = [width for _, width in network.family.layers]
    theirs = [] if not hasattr(module, "down_blocks") else [t.transformer_blocks[0].dim for t in transformers(module)]
    if widths != theirs:
        raise NodeError(
            f"'{name}' has {len(widths)} layers for a UNet's attention, and this {backbone.title} has {len(theirs)}, "
            "or others: they do not go together"
        )


def _check_boxes(grounding: Grounding, patch: ModelPatch) -> None:
    network = patch.network
    assert isinstance(network, GligenNetwork)
    if len(grounding.boxes) > MOST_BOXES:
        raise NodeError(f"{len(grounding.boxes)} texts are in boxes; GLIGEN is made for {MOST_BOXES}")
    for text, _ in grounding.boxes:
        if text.shape[-1] != network.family.text:
            raise NodeError(
                f"the text in a box is {text.shape[-1]} wide, and '{patch.name}' reads {network.family.text}: they are "
                "of different families"
            )
