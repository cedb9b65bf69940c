"""How large a forward need be, by what forwards took."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.engine.curve import AGAIN, KEPT, MEASURED, Curves
from tests.examples import seeds


def measured(takes_s: Callable[[int], float], *sizes: int) -> Curves:
    curves = Curves()
    for _ in range(MEASURED):
        for size in sizes:
            curves.took("a", size, takes_s(size))
    return curves


def full(size: int) -> float:
    """A card that four rows fill."""
    return max(0.05, 0.0125 * size)


def forwards(
    takes_s: Callable[[int], float], sizes: Sequence[int], count: int, *, behind: int = 0, first: float = 1.0
) -> list[int]:
    """Return the sizes of forwards, of which the first takes `first` times as long.

    behind: how many are asked for before one is measured.
    """
    curves, in_flight, chosen = Curves(), deque[int](), []
    for number in range(count):
        chosen.append(sizes[curves.enough("a", sizes) - 1])
        in_flight.append(chosen[-1])
        if len(in_flight) > behind:
            size = in_flight.popleft()
            curves.took("a", size, takes_s(size) * (first if number == behind else 1.0))
    return chosen


def launches(size: int) -> float:
    """A card of which hundreds of rows would fill a forward's kernels."""
    return 0.02 + 0.0001 * size


def busy(size: int) -> float:
    """A device that one row of a video fills."""
    return 0.001 + 3.0 * size


def test_where_nothing_is_known_a_forward_is_of_one_evaluation_and_twice_what_is_known_to_pay() -> None:
    assert Curves().enough("a", [2, 4, 6]) == 1
    assert measured(full, 2, 4).enough("a", [2, 4, 6]) == 3
    assert measured(full, 2, 4).enough("a", [*range(2, 32, 2)]) == 4
    assert measured(full, 2, 4, 6).enough("b", [2, 4, 6]) == 1


@pytest.mark.parametrize(("behind", "within"), [(0, 6), (2, 14)])
@pytest.mark.parametrize("first", [1.0, 20.0])
def test_images_whose_throughput_grows_get_all_rows_within_a_few_forwards(
    behind: int, within: int, first: float
) -> None:
    chosen = forwards(launches, range(1, 17), 60, behind=behind, first=first)
    assert set(chosen[within:]) == {16}
    assert chosen == sorted(chosen)


def test_a_cpu_whose_throughput_grows_slowly_gets_all_rows_too() -> None:
    chosen = forwards(lambda size: 0.3 + 0.1 * size, range(2, 17, 2), 60)
    assert set(chosen[12:]) == {16}


@pytest.mark.parametrize("behind", [0, 2])
@pytest.mark.parametrize("first", [1.0, 20.0])
def test_of_a_video_whose_throughput_does_not_grow_no_more_than_two_rows_are_tried(behind: int, first: float) -> None:
    chosen = forwards(busy, range(1, 17), 200, behind=behind, first=first)
    assert max(chosen) == 2
    assert chosen.count(2) <= MEASURED + behind + 200 // AGAIN
    # With a positive and a negative text an evaluation has two rows.
    alone = forwards(busy, [1], 4)
    assert alone == [1] * 4
    curves = measured(busy, 1, 2)
    assert curves.enough("a", range(2, 17, 2)) == 1


@settings(deadline=None)
@given(st.floats(1e-3, 10.0), st.floats(1e-3, 10.0), st.integers(1, 32), st.integers(1, 3), st.integers(0, 2))
def test_no_forward_is_larger_than_twice_the_size_whose_double_brings_nothing_and_none_is_much_slower_than_the_best(
    each: float, beside: float, count: int, rows: int, behind: int
) -> None:
    def rate(size: int) -> float:
        return size / (beside + each * size)

    sizes = range(rows, rows * count + 1, rows)
    chosen = forwards(lambda size: size / rate(size), sizes, 60, behind=behind)
    grows = rows
    while rate(2 * grows) * KEPT > rate(grows):
        grows *= 2
    assert max(chosen) <= 2 * grows
    assert max(map(rate, chosen[-2:])) >= 0.95 * rate(sizes[-1])


@pytest.mark.parametrize("seed", seeds(5, 100))
def test_on_a_disturbed_machine_images_have_nearly_the_throughput_of_an_undisturbed_one(seed: int) -> None:
    drawn = random.Random(seed)

    def takes_s(size: int) -> float:
        return (0.3 + 0.1 * size) * drawn.uniform(1.0, 1.3)

    chosen = forwards(takes_s, range(2, 17, 2), 300)
    reached = sum(chosen) / sum(0.3 + 0.1 * size for size in chosen)
    assert reached >= 0.93 * 16 / (0.3 + 0.1 * 16)


@pytest.mark.parametrize("seed", seeds(5, 100))
def test_disturbances_of_a_few_percent_do_not_pass_for_a_gain(seed: int) -> None:
    drawn = random.Random(seed)
    chosen = forwards(lambda size: busy(size) * drawn.uniform(1.0, 1.03), range(1, 17), 200)
    assert max(chosen) <= 4


def test_no_more_rows_are_taken_than_fill_the_card() -> None:
    curves = measured(full, 2, 4, 8, 16)
    assert curves.enough("a", [2, 4, 6, 8, 16]) == 2
    assert curves.enough("a", [2]) == 1


def test_where_each_row_takes_less_than_the_last_all_are_taken() -> None:
    assert measured(lambda size: 1 + 0.001 * size, 2, 4, 8, 16).enough("a", [2, 4, 8, 16]) == 4


def test_a_size_between_two_that_were_measured_is_known_and_one_below_is_not_taken() -> None:
    assert measured(full, 4, 12).enough("a", [2, 4, 8, 12]) == 2
    assert measured(lambda size: 1.0 if size < 9 else 1.5, 4, 8, 12).enough("a", [4, 8, 10, 12]) == 2


def test_one_slow_forward_changes_nothing() -> None:
    curves = measured(full, 2, 4, 8)
    curves.took("a", 4, 10.0)
    assert curves.enough("a", [2, 4, 8]) == 2


def test_a_forward_as_large_as_was_tried_is_measured_again_now_and_then() -> None:
    curves = measured(full, 2, 4, 8)
    taken = [curves.enough("a", [2, 4, 8]) for _ in range(2 * (AGAIN + 1))]
    assert taken == ([2] * AGAIN + [3]) * 2


@given(st.dictionaries(st.integers(1, 32), st.floats(1e-4, 10.0), min_size=1, max_size=8), st.integers(1, 8))
def test_what_is_taken_has_nearly_the_best_throughput_of_all_that_could_be(times: dict[int, float], count: int) -> None:
    sizes = sorted(times)[:count]
    taken = sizes[measured(times.__getitem__, *times).enough("a", sizes) - 1]
    rates = {size: size / times[size] for size in sizes}
    assert rates[taken] >= KEPT * max(rates.values())
    assert all(rates[size] < KEPT * max(rates.values()) for size in sizes if size < taken)
