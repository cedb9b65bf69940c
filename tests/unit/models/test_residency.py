"""What weights make way, in a budget of bytes."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, cast

import pytest

from serve_app.models.recipes import Need
from serve_app.models.residency import Hold, Residency, Resident
from serve_app.models.uses import KEPT


class Held(Residency):
    """Weights of 10 bytes each, in a budget of 30."""

    def __init__(self) -> None:
        super().__init__(30)

    def use(self, *keys: str, base: Hashable = None) -> Hold:
        """Have weights as one piece of work does, and load what is absent; in use as long as the result is kept."""
        hold = Hold(Need(dict.fromkeys(keys, 10), ()))
        self.count(hold.need)
        self.expect(hold.need.nbytes, hold)
        for key in keys:
            if not self.has(key):
                self.put(key, Resident(cast(Any, None), key, 10, base), 1.0)
        return hold


def test_what_was_used_least_makes_way_though_it_was_used_most_recently() -> None:
    held = Held()
    for key in ("a", "a", "b", "b", "once", "next"):
        held.use(key)
    assert set(held.names) == {"a", "b", "next"}


def test_what_is_in_use_stays_however_little_it_was_used() -> None:
    held = Held()
    for key in ("a", "b", "a", "b"):
        held.use(key)
    hold = held.use("in use")
    held.use("next")
    assert set(held.names) == {"b", "in use", "next"}
    assert hold.need.nbytes.keys() == {"in use"}


def test_what_is_made_of_a_part_goes_with_it() -> None:
    held = Held()
    held.use("part")
    held.use("part", "set", base="part")
    for key in ("a", "a", "a"):
        held.use(key)
    held.use("next")
    assert set(held.names) == {"part", "a", "next"}, "the set was used once, the part twice"
    for _ in range(3):
        held.use("next")
    held.use("set", base="part")
    for _ in range(9):
        held.use("other")
    assert set(held.names) == {"a", "next", "other"}


@pytest.mark.parametrize(("spared", "left"), [("once", {"once", "b", "ahead"}), ("", {"a", "b", "ahead"})])
def test_what_is_spared_goes_last_for_what_is_loaded_ahead(spared: str, left: set[str]) -> None:
    held = Held()
    for key in ("a", "b", "b", "a", "b", "once"):
        held.use(key)
    need = Need({"ahead": 10}, ())
    assert held.has_room_ahead(need, lambda name: name == spared)
    assert not held.has_room_ahead(need, lambda name: True)
    hold = Hold(need)
    held.expect(need.nbytes, hold, lambda name: name == spared)
    held.put("ahead", Resident(cast(Any, None), "ahead", 10), 1.0)
    assert set(held.names) == left


def test_a_file_that_was_much_used_once_leaves_its_room_to_two_that_are_used_in_turns() -> None:
    held = Held()
    held.use("third")
    for _ in range(1000):
        held.use("once much used")
    for number in range(300):
        held.use("ab"[number % 2])
        held.use("third")
    assert set(held.names) == {"third", "a", "b"}
    assert held.loads < 1 / (1 - KEPT), "a file is remembered to have been used no more often than that"


def test_what_is_released_is_what_was_used_least() -> None:
    held = Held()
    for key in ("a", "a", "b", "c", "c"):
        held.use(key)
    assert held.release(10) == 10
    assert set(held.names) == {"a", "c"}
