"""Grounded generation: gated layers in a UNet's transformers that attend to texts in boxes (GLIGEN).

Between a block's self-attention and its attention to the text, a layer attends to the image's tokens and to one token
for each box. Only the rows with boxes go through it, so others can share their forward.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from serve_app.models.control.model_control import ModelPatch, ModelPatchNetwork
from serve_app.recipe.controls import Grounding


class GroundingNetwork(ModelPatchNetwork):
    """A grounding network on its device.

    layers: one for each of the UNet's transformers, (features, tokens) to features.
    """

    layers: nn.ModuleList

    @abstractmethod
    def tokens(self, grounding: Grounding, height: int, width: int) -> Tensor:
        """Return a token for each box on a canvas of height×width cells, (N,D)."""


@dataclass(frozen=True, slots=True, eq=False)
class ActiveGrounding:
    """Boxes in one run. tokens: cached for each size of canvas."""

    patch: ModelPatch
    given: Grounding
    _tokens: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    @property
    def network(self) -> GroundingNetwork:
        network = self.patch.network
        assert isinstance(network, GroundingNetwork)
        return network

    def tokens(self, height: int, width: int) -> Tensor:
        """Return the boxes' tokens (30,D) for a canvas, or for an area of it, which counts as a canvas."""
        if (height, width) not in self._tokens:
            self._tokens[height, width] = self.network.tokens(self.given, height, width)
        return self._tokens[height, width]


@contextmanager
def with_boxes(
    transformers: Sequence[Any], rows: Sequence[tuple[int, ActiveGrounding | None]], size: tuple[int, int]
) -> Iterator[None]:
    """Apply rows' boxes in forwards of a network. transformers: the network's, in order.

    rows: (rows, boxes) in turn. size: (h,w) of the latents.
    """
    spans, first = [], 0
    for count, grounding in rows:
        if grounding is not None:
            spans.append((slice(first, first + count), grounding))
        first += count
    if not spans:
        yield
        return
    with ExitStack() as stack:
        for number, transformer in enumerate(transformers):
            for block in transformer.transformer_blocks:
                hook = partial(_before_text, spans, number, size)
                stack.callback(block.norm2.register_forward_pre_hook(hook).remove)
        yield


def _before_text(
    spans: Sequence[tuple[slice, ActiveGrounding]], number: int, size: tuple[int, int], _module: Any, given: Any
) -> None:
    """Apply a layer to rows, in place, before the norm of the attention to the text."""
    features: Tensor = given[0]
    for rows, grounding in spans:
        tokens = grounding.tokens(*size)
        own = features[rows].to(tokens.dtype)
        changed: Tensor = grounding.network.layers[number](own, tokens.expand(len(own), -1, -1))
        features[rows] = changed.to(features.dtype)
