"""What stands for a GPU that records calls: it does them again as they are, with what their inputs hold by then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from weakref import WeakSet

import torch
from torch import Tensor

from tests.unit.engine.card import Card


class Replayed:
    """A call that is done again by calling it, into the same place."""

    def __init__(self, call: Callable[[], Sequence[Tensor]], among: WeakSet[Replayed]) -> None:
        self._call = call
        self.outputs = call()
        self._among = among
        among.add(self)

    def replay(self) -> None:
        torch._foreach_copy_([*self.outputs], [*self._call()])

    def reset(self) -> None:
        self.outputs = ()
        self._among.discard(self)


class FakeRecorder:
    """Records by remembering. fails: what it raises instead. recorded: what is still there, of 100 bytes each.

    most: how many bytes inputs and outputs may take.
    """

    def __init__(self, most: int = 10**12) -> None:
        self.most = most
        self.fails: Exception | None = None
        self.recorded: WeakSet[Replayed] = WeakSet()

    def record(self, call: Callable[[], Sequence[Tensor]]) -> Replayed:
        if self.fails is not None:
            raise self.fails
        return Replayed(call, self.recorded)

    def idle_bytes(self) -> int:
        return 100 * len(self.recorded)

    def most_bytes(self) -> int:
        return self.most


class CardRecorder(FakeRecorder):
    """Records calls of an honest card, which counts apart what is done in them."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self._card = card

    def record(self, call: Callable[[], Sequence[Tensor]]) -> Replayed:
        def apart() -> Sequence[Tensor]:
            with self._card.inside():
                return call()

        return super().record(apart)
