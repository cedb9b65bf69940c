"""Estimates how long a forward takes on a card, by its roofline: arithmetic or memory traffic, whichever takes longer.

Each kernel takes at least its operations over the card's rate, and its bytes over the memory's. Copies of streamed
weights run beside the kernels. The launches of kernels and their small sizes are left out. Source: Williams et al.
2009, Roofline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.models.forward_cost import ForwardCost
from serve_app.models.weights.memory_plan import PartPlan

GIB = 2**30

RATE = 0.8
"""The part of a data sheet's arithmetic rate that large products reach; an H100 was measured at 798 of 989 TFLOP/s."""
BANDWIDTH = 0.9
"""The part of a data sheet's memory bandwidth that copies reach."""
FILE_BYTES_S = 4e9
"""What is read from files a second: between an NVMe disk and the page cache."""


@dataclass(frozen=True, slots=True)
class Card:
    """A card by its data sheet: dense fp16 and bf16 products, memory, and copies from the host, as they are reached."""

    name: str
    gib: int
    flops: float
    bytes_s: float
    copies_s: float


CARDS: Sequence[Card] = (
    Card("RTX 4060", 8, 30.2e12, 272e9, 12e9),
    Card("RTX 4070", 12, 58.3e12, 504e9, 24e9),
    Card("RTX 4070 Ti SUPER", 16, 88.2e12, 672e9, 24e9),
    Card("RTX 4090", 24, 165.2e12, 1008e9, 24e9),
    Card("RTX 5090", 32, 209.5e12, 1792e9, 48e9),
    Card("L40S", 48, 362e12, 864e9, 24e9),
    Card("H100 SXM", 80, 989e12, 3350e9, 48e9),
    Card("H200", 141, 989e12, 4800e9, 48e9),
)
"""The cards that are assumed, by their memory, smallest first."""


def assumed_card(card_bytes: int) -> Card:
    """Return the largest card of at most that much memory, or the smallest one."""
    # A card reports a little less than the memory that it is sold with.
    return next((card for card in reversed(CARDS) if card.gib * GIB <= 1.05 * card_bytes), CARDS[0])


def forward_s(cost: ForwardCost, backbone: PartPlan, card: Card) -> float:
    """Return how many seconds a forward takes at least."""
    rate, bandwidth = RATE * card.flops, BANDWIDTH * card.bytes_s
    kernels = sum(count * max(each.flops / rate, each.nbytes / bandwidth) for each, count in cost.kernels.items())
    return max(kernels, backbone.streamed_bytes / card.copies_s, backbone.file_bytes / FILE_BYTES_S)
