"""GITS' schedules, whatever the numbers in their table."""

from __future__ import annotations

from itertools import pairwise

import pytest

from serve_app.sampling.schedules.gits import GRID, MOST_STEPS, PICKS, picked


@pytest.mark.parametrize("coefficient", PICKS)
def test_a_schedule_falls_from_the_first_level_of_the_grid_to_the_last_in_its_steps(coefficient):
    for steps in range(2, MOST_STEPS + 1):
        levels = picked(coefficient, steps)
        assert (len(levels), levels[0], levels[-1]) == (steps + 1, GRID[0], GRID[-1])
        assert all(a > b for a, b in pairwise(levels))
    assert all(a > b for a, b in pairwise(GRID))
