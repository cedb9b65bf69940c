"""A backbone's weights on a device, which answer rows of many runs and recipes in one forward.

What is particular to one recipe comes with its rows; `backbone` makes them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from serve_app.models.families.family import BackboneFamily, Rows
from serve_app.models.lora_forward import with_loras
from serve_app.sampling.forward import Piece
from serve_app.values import DeepShrink, Training


class Network:
    """The weights of one backbone, in use as long as anyone holds this.

    key: equal for equal weights, whatever LoRAs go with them. trained_as: what their file says of their training.
    """

    def __init__(self, key: Hashable, family: BackboneFamily, module: nn.Module, trained_as: Training) -> None:
        self.key = key
        self.family = family
        self.module = module
        self.trained_as = trained_as
        self.device: torch.device = next(module.parameters()).device

    def group_key(self, piece: Piece) -> Hashable:
        """Return what must be equal for pieces to share a forward: patches too, by which features change in size."""
        resized = tuple(patch for patch in piece.layers if isinstance(patch, DeepShrink))
        return (self.family.group_key(piece.x, piece.inputs), *resized)

    def cells(self, piece: Piece) -> int:
        """Return how much work a piece is, in latent cells."""
        return self.family.cells(piece.x, piece.inputs)

    def answer(self, rows: Sequence[Rows]) -> list[Tensor]:
        """Return the network's output for each of the rows, float32, from one forward; their group keys are equal.

        Rows of a run that shares nothing come alone, and what they give does not depend on earlier forwards.
        """
        merging = not any(r.exclusive for r in rows)
        with with_loras([(r.count, r.loras) for r in rows], merging=merging):
            return self.family.forward(self.module, rows)
