"""Decides when a LoRA set is worth merged weights: after many forwards of its own, or before a long run. Pure.

It only counts.
"""

from __future__ import annotations


class MergePolicy:
    """The decision for one set. after: number of consecutive forwards that change it, either way.

    Merged weights save the low-rank layers' work, which matters most for few rows, and cost memory and merging time. A
    batch with several sets cannot use them.
    """

    def __init__(self, after: int = 8) -> None:
        self._after = after
        self._merged = False
        self._against = 0

    def forward(self, alone: bool, pays: bool = False) -> bool:
        """Record a forward with the set, alone or not; return whether it should have merged weights from here on.

        pays: whether merging pays in the rest of its run already.
        """
        self._against = self._against + 1 if alone != self._merged else 0
        if self._against > self._after or (self._against and alone and pays):
            self._merged, self._against = alone, 0
        return self._merged
