"""Which lines must be executed for a changed line to show."""

from __future__ import annotations

import ast

import pytest

from bench.covered import each_in_turn, executed_with

MODULE = ast.parse(
    """LEAST = 1

@cached(
    size=LEAST,
)
def clipped(
    value,
    least=LEAST,
):
    if (
        value
        < least
    ):
        return least
    return max(
        value,
        LEAST,
    )
"""
)


@pytest.mark.parametrize(
    ("changed", "executed"),
    [(1, None), (4, range(10, 19)), (8, range(10, 19)), (12, range(10, 14)), (14, range(14, 15)), (17, range(15, 19))],
    ids=["constant", "decorator", "default", "condition", "branch", "lines"],
)
def test_a_change_shows_where_its_statement_or_what_it_declares_is_executed(changed, executed):
    assert executed_with(MODULE, changed) == executed


def test_one_case_of_each_test_comes_before_the_second_of_any():
    assert each_in_turn(["a[1]", "a[2]", "b[1]", "a[3]", "b[2]"]) == ["a[1]", "b[1]", "a[2]", "b[2]", "a[3]"]
