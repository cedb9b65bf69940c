"""How the rows of a forward are divided over ranks. Pure.

Rows are independent, so ranks that have rows of their own send nothing but inputs and outputs: with classifier-free
guidance a single job has two (CFG parallelism), and jobs that share a forward have more. Ranks that are left over shard
the tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

Parallel: TypeAlias = Literal["auto", "rows", "ulysses"]
"""How a pool divides forwards: rows alone, or tokens too, by Ulysses alone or in any way."""


@dataclass(frozen=True, slots=True)
class Part:
    """Neighbouring rows of a forward, computed by neighbouring ranks. degree: the number of ranks that shard tokens."""

    rows: range
    first_rank: int
    degree: int

    @property
    def ranks(self) -> range:
        return range(self.first_rank, self.first_rank + self.degree)


def divide(rows: int, ranks: int, heads: int | None, parallel: Parallel = "auto") -> list[Part]:
    """Return the parts of a forward, rank 0's first. heads: as `BackboneFamily.sharded_heads`.

    The slowest part has as few rows for its ranks as can be; of equal choices, rows are divided most.
    """
    degree = min(
        degrees(ranks, heads, parallel), key=lambda degree: (-(-rows // min(rows, ranks // degree)) / degree, degree)
    )
    parts = min(rows, ranks // degree)
    bounds = [rows * number // parts for number in range(parts + 1)]
    return [Part(range(*bounds[number : number + 2]), number * degree, degree) for number in range(parts)]


def repeated(parts: Sequence[Part], ranks: int) -> list[Part]:
    """Return parts for all ranks: those that are left over compute the first one's rows once more.

    So all gather weights of which each has a part. The outputs of what is repeated are of no use.
    """
    [*made] = parts
    while (first_rank := made[-1].ranks.stop) < ranks:
        made.append(replace(made[0], first_rank=first_rank))
    return made


def degrees(ranks: int, heads: int | None, parallel: Parallel) -> list[int]:
    """Return the numbers of ranks that may shard the tokens of a row; 1: none do."""
    if heads is None or parallel == "rows":
        return [1]
    divisors = [degree for degree in range(1, ranks + 1) if ranks % degree == 0]
    return [degree for degree in divisors if parallel == "auto" or heads % degree == 0]
