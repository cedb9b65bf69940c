"""ControlNets whose forward is one capturable call: padded, recorded and replayed as a backbone's.

Hints and conditioning inputs are prepared before the call; its outputs are inputs of the backbone's call.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from serve_app.models.control.control import ControlNet, RowIndex
from serve_app.models.families.shared.one_call import present
from serve_app.models.forward import CapturableCall, Inputs, Replays
from serve_app.models.kernels.cuda_graphs import replays_of


class OneCallNet(ControlNet):
    """A ControlNet with a capturable forward. replays: runs it; None: eagerly."""

    replays: Replays

    def __init__(self, key: Hashable, name: str, network: nn.Module) -> None:
        super().__init__(key, name)
        self._module = network
        self.replays = replays_of(next(network.parameters()).device)

    @abstractmethod
    def call_inputs(self, call: Any, index: RowIndex, read: Sequence[Tensor]) -> Mapping[Any, Tensor | None]:
        """Return all input tensors of the call for rows, by name; None for an absent one. As `residuals`.

        Host tensors are sent to the device here.
        """

    @abstractmethod
    def run(self, given: Inputs) -> Sequence[Tensor]:
        """Return the outputs for the inputs. It copies nothing from the host and does not synchronise."""

    def padded_rows(self, rows: int) -> int:
        return self.replays.padded_rows(rows)

    def residuals(self, call: Any, index: RowIndex, read: Sequence[Tensor], exclusive: bool) -> Sequence[Tensor]:
        call = CapturableCall(present(self.call_inputs(call, index, read)), self.run, None if exclusive else ())
        return self.replays.answer(next(self._module.parameters()), call)
