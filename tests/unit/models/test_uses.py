"""What was used least goes first; and much use long ago does not keep anything for ever."""

from __future__ import annotations

import pytest

from serve_app.models.uses import KEPT, Uses


def used(*keys: str) -> Uses[str]:
    uses: Uses[str] = Uses()
    for key in keys:
        uses.add(key)
    return uses


def test_what_was_used_least_is_first_and_what_was_never_used_as_given() -> None:
    assert used(*"abba", *"abc").least_first("dabce") == ["d", "e", "c", "a", "b"], "b later than a, as often"
    assert used("ab", "ab").least_first("ba") == ["b", "a"], "one piece of work uses both at once"


def test_a_use_weighs_less_the_more_pieces_of_work_have_come_since() -> None:
    apart = next(n for n in range(1000) if 2 * KEPT**n < 1)
    for others, first in ((apart - 3, "b"), (apart, "a")):
        uses = used("a", "a", *["other"] * others, "b")
        assert uses.least_first("ab")[0] == first


def test_what_is_used_all_the_time_stays_before_what_is_used_half_as_often_however_long() -> None:
    uses: Uses[str] = Uses()
    for number in range(10_000):
        uses.add("a" if number % 3 else "b")
        if number > 10:
            assert uses.least_first("ab") == ["b", "a"]


def test_what_was_used_long_ago_is_forgotten() -> None:
    uses: Uses[str] = Uses()
    for number in range(10_000):
        uses.add([f"once {number}"])
    assert len(uses) < 2000


@pytest.mark.parametrize("times", [1, 10, 50, 10_000])
def test_two_that_take_turns_do_so_about_as_often_as_the_third_that_has_their_room_was_used_lately(times: int) -> None:
    uses = used(*["c"] * times, "a")
    held, loads = {"a", "c"}, 0
    while "c" in held:
        [absent] = {"a", "b"} - held
        uses.add(absent)
        held.remove(uses.least_first(sorted(held))[0])
        held.add(absent)
        loads += 1
    lately = min(times, 1 / (1 - KEPT))
    assert loads <= 2 * lately + 2
