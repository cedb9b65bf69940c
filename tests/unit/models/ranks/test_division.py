"""How the rows of a forward are divided over ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.errors import ModelFileError
from serve_app.models.families import Wan
from serve_app.models.ranks.division import Part, divide
from serve_app.models.ranks.leader import Leader


@pytest.mark.parametrize(
    ("rows", "ranks", "heads", "parallel", "expected"),
    [
        (2, 2, 24, "auto", [(1, 1), (1, 1)]),
        (1, 4, 24, "auto", [(1, 4)]),
        (2, 4, 24, "auto", [(1, 2), (1, 2)]),
        (2, 3, 24, "auto", [(2, 3)]),
        (3, 2, 24, "auto", [(3, 2)]),
        (8, 4, 24, "auto", [(2, 1)] * 4),
        (1, 4, 6, "ulysses", [(1, 2)]),
        (1, 4, 24, "rows", [(1, 1)]),
        (3, 2, None, "auto", [(1, 1), (2, 1)]),
        (1, 2, None, "auto", [(1, 1)]),
    ],
)
def test_the_slowest_part_has_as_few_rows_for_its_ranks_as_can_be(
    rows: int, ranks: int, heads: int | None, parallel: str, expected: list[tuple[int, int]]
) -> None:
    parts = divide(rows, ranks, heads, parallel)  # type: ignore[arg-type]
    assert [(len(part.rows), part.degree) for part in parts] == expected
    assert [row for part in parts for row in part.rows] == list(range(rows))
    assert parts[0].first_rank == 0
    taken = [rank for part in parts for rank in part.ranks]
    assert len(set(taken)) == len(taken) <= ranks


def test_parts_name_their_ranks() -> None:
    assert list(Part(range(1, 2), 2, 2).ranks) == [2, 3]


def test_heads_that_no_ranks_divide_are_refused_only_where_they_must_be() -> None:
    family: Any = Wan(1536, 1, 192, 48)
    group: Any = SimpleNamespace(size=5)
    Leader(group, "auto").check(family)
    said = r"has 12 attention heads.* 5 does not divide; .* allowed are 2, 3, 4, 6, 12"
    with pytest.raises(ModelFileError, match=said):
        Leader(group, "ulysses").check(family)
    group.size = 4
    Leader(group, "ulysses").check(family)
