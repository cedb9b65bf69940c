"""Families whose forward is one call of tensors: it can be filled up with rows, recorded and replayed.

All that the host has to say comes before the call: positions, masks, which tokens there are, what ControlNets add.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from serve_app.models.batch_inputs import map_rows
from serve_app.models.families.family import BackboneFamily, Rows
from serve_app.models.forward import CapturableCall, Inputs


class OneCall(BackboneFamily):
    """A family of such diffusion networks.

    steady: patches of layers that do the same in every forward, row by row, whoever else is in it.
    """

    steady: ClassVar[tuple[type, ...]] = ()

    @abstractmethod
    def given(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return all tensors that the call takes for rows, by names of the family's own; None for one it does without.

        What comes from the host is sent here.
        """

    @abstractmethod
    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        """Return what all R rows are answered, (R,…), from what they are given.

        It sends nothing and waits for nothing. Of the rows it may read what is equal for equal variants: shapes, ways
        of doing things, patches of layers.
        """

    def is_steady(self, row: Rows) -> bool:
        """Whether the same is done for a row in every forward, and to it alone."""
        changed = row.exclusive or row.functions or row.controls
        return not changed and all(isinstance(patch, self.steady) for patch in row.layers)

    def variant(self, rows: Sequence[Rows]) -> Hashable | None:
        """Return what is equal for calls that do the same with what they are given; None for one like no other."""
        if not all(map(self.is_steady, rows)):
            return None
        layers = tuple(r.layers for r in rows for _ in range(r.count)) if any(r.layers for r in rows) else ()
        return self.group_key(rows[0].x, rows[0].inputs), layers

    def pad_rows(self, rows: Sequence[Rows], count: int) -> Rows | None:
        """Return the last row so many times; None where rows are not independent."""
        if not all(map(self.is_steady, rows)):
            return None

        def many(tensor: Tensor) -> Tensor:
            return tensor[-1:].expand(count, *tensor.shape[1:])

        last = rows[-1]
        return replace(last, x=many(last.x), timestep=many(last.timestep), inputs=map_rows(last.inputs, many))

    def capturable_call(self, network: Any, rows: Sequence[Rows]) -> CapturableCall:
        return CapturableCall(
            present(self.given(network, rows)), partial(self._outputs, network, rows), self.variant(rows)
        )

    def forward(self, network: Any, rows: Sequence[Rows]) -> list[Tensor]:
        return self.split_output(self.run(network, rows, present(self.given(network, rows))).float(), rows)

    def _outputs(self, network: Any, rows: Sequence[Rows], given: Inputs) -> tuple[Tensor]:
        return (self.run(network, rows, given),)


def present(given: Mapping[Any, Tensor | None]) -> dict[Any, Tensor]:
    """Return what there is of what a call may be given."""
    return {name: tensor for name, tensor in given.items() if tensor is not None}
