"""A replica in virtual time: what it holds, when that is there, and what makes way for it."""

from __future__ import annotations

from bench.virtual_replica import Model, Weights

A, B, C = (Model(name, 4.0, 10.0, 1.0) for name in "abc")
LORA = Model("lora", 1.0, 3.0)


def test_what_is_there_is_used_at_once_and_what_is_not_is_loaded_one_file_after_another() -> None:
    weights = Weights(memory_gb=9.0)
    assert weights.use((A, LORA), 100.0) == (113.0, (A, LORA))
    assert weights.use((A,), 105.0) == (110.0, ()), "it waits for its own file alone"
    assert weights.use((A, LORA), 120.0) == (120.0, ())
    assert [held.resident for held in weights.held.values()] == [
        "backbone checkpoints/a + lora 1",
        "backbone checkpoints/a",
    ]


def test_what_was_used_least_recently_makes_way_and_loras_go_with_what_they_are_on() -> None:
    weights = Weights(memory_gb=9.0)
    weights.use((A, LORA), 0.0)
    weights.use((B,), 20.0)
    assert set(weights.held) == {"a", "lora", "b"}
    weights.use((A, LORA), 40.0)
    weights.use((C,), 60.0)
    assert set(weights.held) == {"a", "lora", "c"}, "b was used before a"
    weights.use((B,), 80.0)
    assert set(weights.held) == {"c", "b"}


def test_what_a_job_needs_stays_though_it_is_more_than_there_is_room_for() -> None:
    weights = Weights(memory_gb=3.0)
    assert weights.use((A, LORA), 0.0) == (13.0, (A, LORA))
    assert set(weights.held) == {"a", "lora"}


def test_files_are_loaded_ahead_one_at_a_time_and_what_a_job_needs_after_what_has_begun() -> None:
    weights = Weights(memory_gb=12.0)
    weights.use((A,), 0.0)
    weights.ahead = [(B, LORA)]
    assert weights.load_ahead([(A,)], 5.0) is None, "a is being loaded"
    assert weights.load_ahead([(A,)], 10.0) is B
    assert weights.load_ahead([(A,)], 15.0) is None
    assert weights.use((A, LORA), 15.0) == (23.0, (LORA,))
    assert weights.use((B,), 15.0) == (20.0, ())


def test_once_it_is_all_there_nothing_is_to_be_loaded_ahead() -> None:
    weights = Weights(memory_gb=12.0, ahead=[(B, LORA)])
    assert weights.load_ahead([], 0.0) is B
    assert weights.load_ahead([], 10.0) is LORA
    assert weights.load_ahead([], 13.0) is None
    assert weights.ahead == []


def test_what_is_loaded_ahead_displaces_neither_what_runs_nor_what_is_spared() -> None:
    for running, spare, left in (
        ([(A,)], frozenset("b"), None),
        ([(A,)], frozenset(), {"a", "c"}),
        ([], frozenset("a"), {"a", "c"}),
        ([], frozenset(), {"b", "c"}),
    ):
        weights = Weights(memory_gb=8.0)
        weights.use((A,), 0.0)
        weights.use((B,), 10.0)
        weights.ahead, weights.spare = [(C,)], frozenset(spare)
        assert weights.load_ahead(running, 20.0) is (None if left is None else C)
        assert set(weights.held) == ({"a", "b"} if left is None else left)
        assert bool(weights.ahead) is (left is not None), "what has no room is given up"


def test_a_lora_of_what_runs_stays_with_it() -> None:
    weights = Weights(memory_gb=8.0)
    weights.use((A, LORA), 0.0)
    weights.ahead = [(B,)]
    assert weights.load_ahead([(A,)], 20.0) is None
    assert set(weights.held) == {"a", "lora"}
