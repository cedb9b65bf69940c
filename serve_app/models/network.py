"""A backbone's weights on a device, which answer rows of many runs and recipes in one forward.

What is particular to one recipe comes with its rows; `backbone` makes them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from serve_app.models.families.family import BackboneFamily, Rows
from serve_app.models.families.shared.one_call import OneCall
from serve_app.models.forward import Replays
from serve_app.models.kernels.cuda_graphs import replays_of
from serve_app.models.lora.forward import with_loras
from serve_app.recipe import DeepShrink, Training
from serve_app.sampling.forward import Piece


class Network:
    """The weights of one backbone, in use as long as anyone holds this.

    key: equal for equal weights, whatever LoRAs go with them. trained_as: what their file says of their training.
    replays: how its forwards are run; None as all on its device. streamed: not all of its weights stay there.
    """

    def __init__(
        self,
        key: Hashable,
        family: BackboneFamily,
        module: nn.Module,
        trained_as: Training,
        replays: Replays | None = None,
        streamed: bool = False,
    ) -> None:
        self.key = key
        self.streamed = streamed
        self.family = family
        self.module = module
        self.trained_as = trained_as
        self._weight = next(module.parameters())
        self.device: torch.device = self._weight.device
        self._replays = replays_of(self.device) if replays is None else replays

    def group_key(self, piece: Piece) -> Hashable:
        """Return what must be equal for pieces to share a forward: patches too, by which features change in size."""
        resized = tuple(patch for patch in piece.layers if isinstance(patch, DeepShrink))
        return (self.family.group_key(piece.x, piece.inputs), *resized)

    def cells(self, piece: Piece) -> int:
        """Return how much work a piece is, in latent cells."""
        return self.family.cells(piece.x, piece.inputs)

    def filled(self, rows: int) -> int:
        """Return how many rows a forward of so many runs with, or more than that where it is not filled up."""
        return self._replays.filled(rows) if isinstance(self.family, OneCall) else rows

    def answer(self, rows: Sequence[Rows]) -> list[Tensor]:
        """Return the network's output for each of the rows, float32, from one forward; their group keys are equal.

        Rows of a run that shares nothing come alone, and what they give does not depend on earlier forwards.
        """
        merging = not any(r.exclusive for r in rows)
        asked, rows = len(rows), self._filled(rows)
        with with_loras([(r.count, r.loras) for r in rows], merging=merging) as read:
            bare = self.family.bare(self.module, rows)
            if bare is None:
                return self.family.forward(self.module, rows)
            # A recording would know nothing of the copies that streamed weights come by.
            bare = (
                replace(bare, variant=None)
                if read is None or self.streamed
                else replace(bare, reads=read[0] if read else None)
            )
            [output] = self._replays.answer(self._weight, bare, torch.float32)
        return self.family.answers(output, rows)[:asked]

    def _filled(self, rows: Sequence[Rows]) -> Sequence[Rows]:
        count = sum(r.count for r in rows)
        lacking = self._replays.filled(count) - count
        filling = self.family.filling(rows, lacking) if lacking else None
        return rows if filling is None else [*rows, filling]
