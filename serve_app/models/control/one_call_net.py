"""ControlNets whose forward is one call of tensors: it is filled up with rows, recorded and replayed as a backbone's.

What the hint says and the rows are told comes before the call; what it gives are inputs of the backbone's own.
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
    """A ControlNet with such a network. replays: how its forwards are run; as all on its device."""

    replays: Replays

    def __init__(self, key: Hashable, name: str, network: nn.Module) -> None:
        super().__init__(key, name)
        self._module = network
        self.replays = replays_of(next(network.parameters()).device)

    @abstractmethod
    def given(self, call: Any, index: RowIndex, read: Sequence[Tensor]) -> Mapping[Any, Tensor | None]:
        """Return all tensors that the call takes for rows, named; None for one it does without. As `residuals`.

        What comes from the host is sent here.
        """

    @abstractmethod
    def run(self, given: Inputs) -> Sequence[Tensor]:
        """Return what is added to the rows, from what is given. It sends nothing and waits for nothing."""

    def padded_rows(self, rows: int) -> int:
        return self.replays.padded_rows(rows)

    def residuals(self, call: Any, index: RowIndex, read: Sequence[Tensor], exclusive: bool) -> Sequence[Tensor]:
        call = CapturableCall(present(self.given(call, index, read)), self.run, None if exclusive else ())
        return self.replays.answer(next(self._module.parameters()), call)
