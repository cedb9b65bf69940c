"""How the rows of a forward are divided over ranks."""

from __future__ import annotations

import pytest

from serve_app.models.ranks.division import Part, divide


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
