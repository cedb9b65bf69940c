"""Whether rows with texts of unequal lengths share a masked forward or run apart, by which moves fewer bytes. Pure.

On GPUs before Hopper flash attention takes no mask, and the kernel that does reads keys and values twice as often. Rows
apart need no mask, and read the weights again.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

FLASH_QUERIES, MASKED_QUERIES = 128, 64
"""Queries for which keys and values are read once: by flash attention, and by the kernel that takes masks."""

ITEMSIZE = 2
"""Bytes of a key's number."""

ROWS = 2
"""Rows that a mask slows down, at least: of two texts."""


class JointAttention(NamedTuple):
    """Attention in which a row's text and image attend to each other.

    lengths: equal for rows that need no mask with each other. tokens: of text and image; width: of all heads together;
    layers: how many attend.
    """

    lengths: Hashable
    tokens: int
    width: int
    layers: int

    def runs_apart(self, weights_bytes: int) -> bool:
        """Whether rows of other lengths run in another forward. weights_bytes: that a forward reads."""
        more_reads = self.tokens / MASKED_QUERIES - self.tokens / FLASH_QUERIES
        keys_and_values = 2 * self.tokens * self.width * ITEMSIZE
        return ROWS * self.layers * more_reads * keys_and_values > weights_bytes
