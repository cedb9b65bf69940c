"""When a set of LoRAs is worth merged weights: once it has had many forwards to itself. Pure: it only counts."""

from __future__ import annotations


class MergePolicy:
    """The decision for one set. after: how many forwards in a row it takes to change one's mind, either way.

    Merged weights save the low-rank layers' work, which counts most for few rows, and cost their memory and the time of
    making them. Rows of several sets in one forward have no use for them.
    """

    def __init__(self, after: int = 8) -> None:
        self._after = after
        self._merged = False
        self._against = 0

    def forward(self, alone: bool) -> bool:
        """Note a forward with the set in it, alone or not; return whether it is to have merged weights from here on."""
        self._against = self._against + 1 if alone != self._merged else 0
        if self._against > self._after:
            self._merged, self._against = alone, 0
        return self._merged
