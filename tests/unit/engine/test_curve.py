"""How large a forward need be, by what forwards took."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.curve import AGAIN, KEPT, MEASURED, Curves


def measured(takes_s: Callable[[int], float], *sizes: int) -> Curves:
    curves = Curves()
    for _ in range(MEASURED):
        for size in sizes:
            curves.took("a", size, takes_s(size))
    return curves


def full(size: int) -> float:
    """A card that four rows fill."""
    return max(0.05, 0.0125 * size)


def test_where_nothing_is_known_a_forward_is_as_large_as_can_be() -> None:
    assert Curves().enough("a", [2, 4, 6]) == 3
    assert measured(full, 2, 4).enough("a", [2, 4, 6]) == 3
    assert measured(full, 2, 4, 6).enough("b", [2, 4, 6]) == 3


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


def test_a_forward_as_large_as_can_be_is_measured_again_now_and_then() -> None:
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
