"""The schedules that GITS found for Stable Diffusion, by coefficient and number of steps, as published.

Every level is one of a grid. Source: Chen et al. 2024, arXiv:2405.11326, as diff-sampler's gits-main has them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from serve_app.errors import NodeError

_PUBLISHED = json.loads(Path(__file__).with_name("gits.json").read_bytes())

GRID: Sequence[float] = _PUBLISHED["levels"]
"""Levels, descending: from the highest, where all schedules begin, to the lowest above zero, where they end."""

PICKS: dict[float, Sequence[Sequence[int]]] = {float(name): picks for name, picks in _PUBLISHED["picks"].items()}
"""By coefficient, the indices in GRID of the levels between both ends, for 2 to 20 steps in turn."""

MOST_STEPS = 20


def picked(coefficient: float, steps: int) -> Sequence[float]:
    """Return the steps + 1 levels for a number of steps, at most those of 20. Errors: NodeError for a coefficient."""
    picks = PICKS.get(round(coefficient, 2))
    if picks is None:
        raise NodeError(f"coeff {coefficient:g} has no schedule; there are {', '.join(map(str, PICKS))}")
    between = picks[min(steps, MOST_STEPS) - 2]
    levels = [GRID[0], *(GRID[place] for place in between), GRID[-1]]
    # Of fewer than 2 steps, which only a link brings, the end of the last list.
    return levels[-(min(steps, MOST_STEPS) + 1) :]
