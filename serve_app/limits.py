"""How often each limit has refused something in this process, and how many levels of noise a run has."""

from __future__ import annotations

import math
from collections import Counter

REFUSALS: Counter[str] = Counter()
"""How often each limit has refused something in this process, or cut it short."""


def refused(key: str) -> None:
    """Count that the limit with this key of the configuration has refused something or cut it short."""
    REFUSALS[key] += 1


MOST_COUNTED = 10**15
"""As what a larger number counts, so that none has more digits than can be shown."""


def levels_of(steps: int, denoise: float = 1.0) -> int:
    """Return how many levels the schedule of a run has: its steps, and below a denoise of 1 those before them too.

    A run of denoise 0.25 makes a schedule four times as long and steps over its last quarter. Without denoise, none.
    """
    if not denoise > 0.0:
        return 0
    return min(MOST_COUNTED, max(0, steps) if denoise >= 1.0 else math.ceil(min(max(0, steps) / denoise, MOST_COUNTED)))


def describe_levels(steps: int, denoise: float) -> str:
    """Return the levels of a run as the beginning of an error: what is given, and of what it makes too many."""
    return f"steps {steps} and denoise {denoise:g} make a schedule of"
