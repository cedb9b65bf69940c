"""Texts that are to be seen in boxes, told to a UNet's attention by gated layers beside its own.

Between a block's attention within the image and that to the text, a layer attends to the image's tokens and to one
token for each box. Only the rows that have boxes go through it, so others share their forward.
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
from serve_app.recipe import Grounding


class GroundingNetwork(ModelPatchNetwork):
    """A network on its device. layers: one for each of the UNet's transformers, (features, tokens) to features."""

    layers: nn.ModuleList

    @abstractmethod
    def tokens(self, grounding: Grounding, height: int, width: int) -> Tensor:
        """Return a token for each box on a canvas of height×width cells, (N,D)."""


@dataclass(frozen=True, slots=True, eq=False)
class ActiveGrounding:
    """Boxes in one run. tokens: made once for each size of canvas."""

    patch: ModelPatch
    given: Grounding
    _tokens: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    @property
    def network(self) -> GroundingNetwork:
        network = self.patch.network
        assert isinstance(network, GroundingNetwork)
        return network

    def tokens(self, height: int, width: int) -> Tensor:
        """Return the boxes' tokens (30,D) on a canvas, or on an area of it, which counts as one."""
        if (height, width) not in self._tokens:
            self._tokens[height, width] = self.network.tokens(self.given, height, width)
        return self._tokens[height, width]


@contextmanager
def with_boxes(
    transformers: Sequence[Any], rows: Sequence[tuple[int, ActiveGrounding | None]], size: tuple[int, int]
) -> Iterator[None]:
    """Tell rows of their boxes while a network runs, whose transformers these are, in order.

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
    """Put rows through a layer, in place: what is normed here is what the attention to the text is added to."""
    features: Tensor = given[0]
    for rows, grounding in spans:
        tokens = grounding.tokens(*size)
        own = features[rows].to(tokens.dtype)
        changed: Tensor = grounding.network.layers[number](own, tokens.expand(len(own), -1, -1))
        features[rows] = changed.to(features.dtype)
