"""Who shares the next forward: what is due first, equal keys only, whole evaluations, never more than most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.batcher import PATIENCE, in_turn, share


@dataclass(eq=False)
class Item:
    """An evaluation."""

    key: Hashable
    cost: int
    since: int = 0


# A key is the weights and a shape of latents.
keys = st.tuples(st.sampled_from("ab"), st.sampled_from([(4, 8, 8), (4, 8, 16), (4, 16, 16)]))
mixes = st.lists(st.builds(Item, keys, st.integers(1, 9), st.integers(0, 5)), max_size=12)


def test_nothing_waiting_makes_no_forward():
    assert share([], 8) == []


def test_evaluations_of_equal_keys_share_a_forward():
    items = [Item("a", 2), Item("b", 2), Item("a", 2), Item("a", 1)]
    assert share(items, 8) == [items[0], items[2], items[3]]


def test_an_evaluation_that_does_not_fit_is_passed_over_for_a_later_one_that_does():
    items = [Item("a", 4), Item("a", 6), Item("a", 4)]
    assert share(items, 8) == [items[0], items[2]]


def test_an_evaluation_larger_than_a_forward_goes_alone():
    items = [Item("a", 20), Item("a", 2)]
    assert share(items, 8) == [items[0]]


def test_an_older_job_goes_first_until_a_younger_one_has_waited_for_it_long_enough():
    older, younger = Item("a", 2), Item("b", 2)
    assert in_turn([older, younger]) == [older, younger]
    older.since = 2 * PATIENCE
    assert in_turn([older, younger]) == [older, younger]
    older.since += 1
    assert in_turn([older, younger]) == [younger, older]


def test_no_more_share_a_forward_than_are_enough():
    items = [Item("a", 2), Item("b", 2), Item("a", 3), Item("a", 1)]
    costs = []
    assert share(items, 8, lambda growing: costs.extend(growing) or 2) == [items[0], items[2]]
    assert costs == [2, 5, 6]


@given(mixes, st.integers(1, 16))
def test_a_forward_holds_one_key_and_no_more_rows_than_fit(items, most):
    chosen = share(items, most)
    assert len({id(item) for item in chosen}) == len(chosen)
    assert len({item.key for item in chosen}) == min(1, len(items))
    assert len(chosen) <= 1 or sum(item.cost for item in chosen) <= most


@given(mixes, st.integers(1, 16))
def test_a_forward_leaves_no_room_that_a_waiting_evaluation_of_its_key_would_fill(items, most):
    chosen = share(items, most)
    room = most - sum(item.cost for item in chosen)
    assert all(item.cost > room for item in items if chosen and item not in chosen and item.key == chosen[0].key)


@given(mixes.filter(bool), st.integers(1, 16))
def test_an_evaluation_that_is_due_waits_for_one_answer_of_each_other_at_most(items, most):
    worked = 6
    passed: dict[int, Counter[int]] = {}
    for _ in range(3 * PATIENCE * len(items)):
        chosen = share(in_turn(items), most, lambda costs: 1)
        for rank, item in enumerate(items):
            if worked >= item.since + item.cost * (1 + PATIENCE * rank) and item not in chosen:
                others = passed.setdefault(rank, Counter())
                others.update(items.index(other) for other in chosen)
                assert max(others.values()) == 1
        worked += max(item.cost for item in chosen)
        for item in chosen:
            item.since = worked
            passed.pop(items.index(item), None)


def turns_of(video: int, image: int, steps: int) -> int:
    """Return how many forwards of a video run until an image that comes during the first of them has its steps."""
    kinds = [Item("video", video), Item("image", image)]
    items, worked, forwards, left = [kinds[0]], 0, 0, steps
    while left:
        [chosen] = share(in_turn(items), 1)
        worked += chosen.cost
        forwards, left = forwards + (chosen is kinds[0]), left - (chosen is kinds[1])
        if len(items) == 1:
            items, kinds[1].since = kinds, worked
        chosen.since = worked
    return forwards


def test_a_short_image_beside_a_long_video_waits_for_the_forward_in_flight_and_not_for_the_video():
    # A video of 81 images at 480p is 21 · 60 · 104 cells, an image of a megapixel 128 · 128.
    assert turns_of(131_040, 16_384, steps=4) == 2
    assert turns_of(131_040, 4_096, steps=20) == 1
    assert turns_of(131_040, 16_384, steps=20) == 7
    # One that is as large waits as long as an older job's forwards make it.
    assert turns_of(16_384, 16_384, steps=3) == 3 * (PATIENCE + 1) + 1


def test_a_job_of_another_key_comes_in_though_older_ones_go_on():
    items = [Item("a", 2) for _ in range(3)] + [Item("b", 2)]
    keys = []
    for forward in range(1, 30):
        chosen = share(in_turn(items), 16)
        keys.append(str(chosen[0].key))
        for item in chosen:
            item.since = 2 * forward
    assert "".join(keys) == ("a" * (3 * PATIENCE + 1) + "b") * 2 + "a"
