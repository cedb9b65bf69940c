"""How much a forward may hold: learned from what failed, forgotten slowly."""

from __future__ import annotations

from math import log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.budget import GROWS_AFTER, KEYS_KEPT, MEASURED, Budget
from serve_app.models.weights.memory_plan import CELL_BYTES


def run(budget, room, wanted, forwards, key="a"):
    """Ask for forwards of `wanted` cells on a device with room for some; return how many failed."""
    failures = 0
    for _ in range(forwards):
        while (cells := min(wanted, budget.limit(key))) > room:
            budget.failed(key, cells)
            failures += 1
        budget.answered(key, cells)
    return failures


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_what_fits_is_found_with_no_more_failures_than_halvings_and_then_kept(room, wanted):
    budget = Budget(10**6)
    assert run(budget, room, wanted, 1) <= max(0, log2(wanted))
    assert run(budget, room, wanted, GROWS_AFTER - 1) == 0
    assert budget.limit("a") > room // 2 or wanted <= room


def test_a_limit_holds_for_its_own_key():
    budget = Budget(100)
    budget.failed("a", 80)
    assert (budget.limit("a"), budget.limit("b")) == (40, 100)


def test_a_lowered_limit_is_forgotten_slowly_once_there_is_room():
    budget = Budget(100)
    budget.failed("a", 80)
    reached = [budget.limit("a")]
    for _ in range(12):
        run(budget, 100, 1000, GROWS_AFTER)
        reached.append(budget.limit("a"))
    assert reached == sorted(reached)
    assert (reached[0], reached[1], reached[-1]) == (40, 45, 100)


def test_trying_a_little_more_than_fits_costs_one_failure_and_no_room():
    budget = Budget(1000)
    assert run(budget, 520, 1000, GROWS_AFTER) == 1
    assert budget.limit("a") == 562
    assert run(budget, 520, 1000, 1) == 1
    assert budget.limit("a") == 500


def test_a_limit_falls_again_when_other_work_has_taken_the_memory():
    budget = Budget(1000)
    run(budget, 1000, 800, 3)
    assert run(budget, 300, 800, 1) == 2
    assert budget.limit("a") == 200


def test_what_does_not_fit_at_all_leaves_a_limit_of_nothing_and_no_less():
    budget = Budget(10)
    budget.failed("a", 1)
    assert budget.limit("a") == 0


def test_keys_that_have_not_been_used_for_long_are_forgotten():
    budget = Budget(100)
    budget.failed("old", 80)
    for key in range(KEYS_KEPT):
        budget.answered(key, 1)
    assert budget.limit("old") == 100


@pytest.mark.parametrize("cells", [1, 7, 100])
def test_nothing_is_lowered_without_a_failure(cells):
    budget = Budget(100)
    assert run(budget, 100, cells, 3 * GROWS_AFTER) == 0
    assert budget.limit("a") == 100


MOST = 10**9
"""More cells than any room here has."""


def test_before_any_is_measured_a_cell_is_taken_to_need_what_is_taken_for_granted():
    budget = Budget(100)
    assert [budget.limit("a", cells * CELL_BYTES) for cells in (-5, 0, 7, 1000)] == [0, 0, 7, 100]
    assert budget.needs("a", 3) is None


@given(
    st.lists(st.integers(1, 10_000), min_size=1, max_size=MEASURED),
    st.integers(0, 10_000),
    st.integers(1, 100_000),
    st.integers(0, 10**9),
)
def test_what_fits_by_measured_forwards_does_and_one_cell_more_would_not_where_memory_is_linear(
    measured, beside, a_cell, room
):
    budget = Budget(MOST)
    for cells in measured:
        budget.answered("a", cells, beside + a_cell * cells)
    cells = budget.limit("a", room)
    # Below the least that was measured, all of that is taken for so many bytes a cell.
    if cells >= min(measured):
        assert beside + a_cell * cells <= room
    assert budget.needs("a", cells) <= room
    assert budget.needs("a", cells + 1) > room
    if not beside:
        assert cells == room // a_cell


def test_memory_taken_by_others_during_one_forward_is_forgotten_after_later_ones():
    budget = Budget(MOST)
    budget.answered("a", 10, 10_000)
    assert budget.limit("a", 1000) == 1
    for _ in range(MEASURED):
        budget.answered("a", 1, 10)
    assert budget.limit("a", 1000) == 100


def test_what_fails_is_not_tried_again_whatever_was_measured():
    budget = Budget(MOST)
    budget.answered("a", 10, 10)
    budget.failed("a", 80)
    assert budget.limit("a", 1000) == 40
