"""Who shares the next forward: what is due first, equal keys only, whole evaluations, never more than most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.batcher import PATIENCE, share


@dataclass(eq=False)
class Item:
    """An evaluation. forwards: how many its pieces take, more than one where areas differ in shape."""

    key: Hashable
    cost: int
    since: int = 0
    forwards: int = 1


# A key is the weights and a shape of latents.
keys = st.tuples(st.sampled_from("ab"), st.sampled_from([(4, 8, 8), (4, 8, 16), (4, 16, 16)]))
mixes = st.lists(st.builds(Item, keys, st.integers(1, 9), st.integers(0, 5), st.integers(1, 3)), max_size=12)


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
    assert share([older, younger], 8) == [older]
    older.since = PATIENCE
    assert share([older, younger], 8) == [older]
    older.since += 1
    assert share([older, younger], 8) == [younger]


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
def test_every_evaluation_is_answered_again_within_its_patience_and_as_many_turns_as_evaluations_wait(items, most):
    waited: Counter[int] = Counter()
    forwards = 6
    for _ in range(3 * PATIENCE * len(items)):
        chosen = share(items, most, lambda costs: 1)
        forwards += max(item.forwards for item in chosen)
        waited.update(range(len(items)))
        assert all(turns <= PATIENCE * rank + len(items) for rank, turns in waited.items())
        for item in chosen:
            item.since = forwards
            del waited[items.index(item)]


def test_a_job_of_another_key_comes_in_though_older_ones_go_on():
    items = [Item("a", 2) for _ in range(3)] + [Item("b", 2)]
    keys = []
    for forward in range(1, 30):
        chosen = share(items, 16)
        keys.append(str(chosen[0].key))
        for item in chosen:
            item.since = forward
    assert "".join(keys) == ("a" * (3 * PATIENCE + 1) + "b") * 2 + "a"
