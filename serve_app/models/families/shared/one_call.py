"""Families whose forward is one capturable call: it can be padded, recorded as a CUDA graph and replayed.

The host prepares everything before the call: positions, masks, padding, outputs of ControlNets.
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
    """A family of diffusion networks with a capturable forward.

    steady: layer patches that compute the same in every forward, row by row, independent of other rows.
    """

    steady: ClassVar[tuple[type, ...]] = ()
    padded: ClassVar[bool] = True
    """Whether batches are padded to few sizes, so that shapes repeat and recorded calls can be replayed."""

    @abstractmethod
    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return all input tensors of the call for rows, by the family's own names; None for an absent one.

        Host tensors are sent to the device here.
        """

    @abstractmethod
    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        """Return the output of all R rows, (R,…), for their inputs.

        Where `variant` has a key, it copies nothing from the host and does not synchronise. Of the rows it may read
        only what `variant` contains: shapes, options, layer patches.
        """

    def is_steady(self, row: Rows) -> bool:
        """Whether the same is computed for a row in every forward, independent of other rows."""
        changed = row.exclusive or row.functions or row.controls
        return not changed and all(isinstance(patch, self.steady) for patch in row.layers)

    def variant(self, rows: Sequence[Rows]) -> Hashable | None:
        """Return a key that is equal for calls that run the same kernels; None for one that must not be recorded."""
        if not all(map(self.is_steady, rows)):
            return None
        layers = tuple(r.layers for r in rows for _ in range(r.count)) if any(r.layers for r in rows) else ()
        return self.group_key(rows[0].x, rows[0].inputs), layers

    def pad_rows(self, rows: Sequence[Rows], count: int) -> Rows | None:
        """Return the last row repeated; None where rows are not independent, or not padded."""
        if not (self.padded and all(map(self.is_steady, rows))):
            return None

        def many(tensor: Tensor) -> Tensor:
            return tensor[-1:].expand(count, *tensor.shape[1:])

        last = rows[-1]
        return replace(last, x=many(last.x), timestep=many(last.timestep), inputs=map_rows(last.inputs, many))

    def capturable_call(self, network: Any, rows: Sequence[Rows]) -> CapturableCall:
        return self.prepared_call(network, rows, present(self.call_inputs(network, rows)))

    def prepared_call(self, network: Any, rows: Sequence[Rows], given: Inputs) -> CapturableCall:
        """Return the call for rows whose input tensors are there already, as `call_inputs` returned them elsewhere."""
        return CapturableCall(given, partial(self._outputs, network, rows), self.variant(rows))

    def forward(self, network: Any, rows: Sequence[Rows]) -> list[Tensor]:
        return self.split_output(self.run(network, rows, present(self.call_inputs(network, rows))).float(), rows)

    def _outputs(self, network: Any, rows: Sequence[Rows], given: Inputs) -> tuple[Tensor]:
        return (self.run(network, rows, given),)


def present(given: Mapping[Any, Tensor | None]) -> dict[Any, Tensor]:
    """Return the inputs that are not None."""
    return {name: tensor for name, tensor in given.items() if tensor is not None}
