"""Counts the jobs in lists by tenant, state and stretch of positions: the length of a list, and where a page begins,
without a scan of the jobs before it. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from serve_app.store.database.changes import JobQuery, ListCount, Sort
from serve_app.store.database.list_statements import STRETCH_BITS

UNFINISHED = frozenset({"queued", "running"})


class ListCounts:
    """The counts of listed jobs, in all and of each tenant."""

    def __init__(self) -> None:
        self._stretches: dict[tuple[Sort, str, str], Counter[int]] = {}

    def add(self, counted: ListCount) -> None:
        """Add to a count; a negative number subtracts."""
        stretches: Mapping[Sort, int | None] = {"created": counted.created, "ended": counted.ended}
        for whose in {"", counted.tenant}:
            for sort, stretch in stretches.items():
                if stretch is not None:
                    counts = self._stretches.setdefault((sort, whose, counted.state), Counter())
                    counts[stretch] += counted.jobs
                    if not counts[stretch]:
                        del counts[stretch]

    def length(self, query: JobQuery) -> int:
        """Return the number of jobs that a query finds without its window and its workflow."""
        return sum(count for counts in self._of(query, "created") for count in counts.values())

    def near(self, query: JobQuery) -> JobQuery:
        """Return an equal query that skips less than one stretch, if its sort order has positions."""
        if query.sort not in STRETCH_BITS:
            return query
        counts = self._of(query, query.sort)
        left, places = query.offset, 1 << STRETCH_BITS[query.sort]
        for stretch in sorted(set().union(*counts), reverse=query.descending):
            if left < (there := sum(of_state[stretch] for of_state in counts)):
                start = (stretch + 1) * places - 1 if query.descending else stretch * places
                return replace(query, offset=left, start=start)
            left -= there
        return replace(query, offset=0, limit=0)

    def unfinished(self) -> ListCounts:
        """Return a copy with unfinished jobs only."""
        kept = ListCounts()
        kept._stretches = {key: Counter(counts) for key, counts in self._stretches.items() if key[2] in UNFINISHED}
        return kept

    def _of(self, query: JobQuery, sort: Sort) -> list[Counter[int]]:
        found = (self._stretches.get((sort, query.tenant, state)) for state in set(query.states))
        return [counts for counts in found if counts]


def stretch_of(sort: Sort, place: int) -> int:
    """Return the stretch of a list that contains a position."""
    return place >> STRETCH_BITS[sort]
