"""Rows that pass by blocks of a transformer, among rows that do not."""

from __future__ import annotations

from typing import Any

import torch

from serve_app.models.families.family import Rows
from serve_app.models.families.shared.dit import Passing, passed
from serve_app.recipe.guidance import SkippedBlocks
from serve_app.recipe.layers import FreeU

TEXT, IMAGE = torch.zeros(3, 2, 4), torch.ones(3, 5, 4)


def rows(count: int, *layers: Any) -> Rows:
    return Rows(torch.zeros(count, 1), 1.0, torch.ones(count), None, layers=layers)


def passing(asked: list[Rows], kind: str) -> Passing:
    return Passing(asked, kind, passed(asked))


def block() -> tuple[torch.Tensor, torch.Tensor]:
    return TEXT + 7, IMAGE + 7


def moved(passing: Passing, number: int) -> list[bool]:
    """Return which rows a block changed; both streams of a row are changed, or none."""
    text, image = passing.through(number, block, TEXT, IMAGE)
    by_row = [(bool((text[i] == 7).all()), bool((image[i] == 8).all())) for i in range(3)]
    assert all(first == second for first, second in by_row)
    return [first for first, _ in by_row]


def test_only_the_rows_that_name_a_block_of_the_kind_pass_by_it() -> None:
    mixed = [rows(1, SkippedBlocks((1,), (2,))), rows(2, FreeU(1, 1, 1, 1))]
    assert moved(passing(mixed, "doubles"), 1) == [False, True, True]
    assert moved(passing(mixed, "doubles"), 2) == [True, True, True]
    assert moved(passing(mixed, "singles"), 2) == [False, True, True]


def test_a_block_that_all_pass_by_is_not_run() -> None:
    def never() -> Any:
        raise AssertionError

    all_pass = passing([rows(3, SkippedBlocks((0,)))], "doubles")
    assert all_pass.through(0, never, TEXT, IMAGE) == (TEXT, IMAGE)


def test_a_last_block_makes_nothing_of_the_text() -> None:
    mixed = passing([rows(1, SkippedBlocks((0,))), rows(2)], "doubles")
    text, image = mixed.through(0, lambda: (None, IMAGE + 7), TEXT, IMAGE)
    assert text is None
    assert [bool((row == 8).all()) for row in image] == [False, True, True]
