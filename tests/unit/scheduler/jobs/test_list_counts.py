"""What lists are counted by: a page of a long list is found without passing over more jobs than one stretch has."""

from __future__ import annotations

import contextlib

import pytest

from serve_app.scheduler.events.published_jobs import PublishedJobs
from serve_app.scheduler.jobs.list_counts import ListCounts, stretch_of
from serve_app.store.database.changes import JobQuery, ListCount, Sort
from serve_app.store.database.list_statements import STRETCH_BITS

JOBS = 100_000
STATES = ("success", "success", "error")


@pytest.fixture(scope="module")
def counts() -> ListCounts:
    """A hundred thousand jobs of three tenants, of which every third failed and the last twentieth waits."""
    counts = ListCounts()
    for order in range(JOBS):
        tenant = ("", "a", "b")[order // 7 % 3]
        ended = order < JOBS * 19 // 20
        state, end = (STATES[order % 3], stretch_of("ended", 10 * order)) if ended else ("queued", None)
        counts.add(ListCount(tenant, state, stretch_of("created", order), end))
    return counts


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(("sort", "step"), [("created", 1), ("ended", 10)])
def test_however_deep_a_page_lies_less_than_a_stretch_is_passed_over(
    counts: ListCounts, sort: Sort, step: int, descending: bool
) -> None:
    listed = [order for order in range(JOBS * 19 // 20) if order % 3 == 2]
    listed = listed[::-1] if descending else listed
    query = JobQuery(("error",), sort, descending, limit=64)
    assert counts.length(query) == len(listed)
    for offset in (0, 1, 1000, len(listed) // 2, len(listed) - 1):
        near = counts.near(JobQuery(("error",), sort, descending, offset, 64))
        assert near.start is not None
        assert near.offset < 2 ** STRETCH_BITS[sort] // step
        places = [step * order for order in listed]
        past = [at for at in places if (at <= near.start if descending else at >= near.start)]
        assert past[near.offset] == places[offset]
    assert counts.near(JobQuery(("error",), sort, descending, len(listed), 64)).limit == 0


def test_a_list_of_one_tenant_is_as_long_as_its_jobs(counts: ListCounts) -> None:
    states = ("success", "error", "queued")
    lengths = [counts.length(JobQuery(states, "created", tenant=tenant)) for tenant in ("", "a", "b", "nobody")]
    assert lengths == [JOBS, sum(n // 7 % 3 == 1 for n in range(JOBS)), sum(n // 7 % 3 == 2 for n in range(JOBS)), 0]
    assert counts.unfinished().length(JobQuery(states, "created")) == JOBS // 20


def test_by_how_long_they_ran_jobs_have_no_places(counts: ListCounts) -> None:
    query = JobQuery(("error",), "duration", offset=5000, limit=64)
    assert counts.near(query) == query


def test_of_two_counts_at_once_the_one_begun_later_stays() -> None:
    published = PublishedJobs(1)
    with contextlib.ExitStack() as earlier:
        before = earlier.enter_context(published.recounting())
        before.add(ListCount("", "success", 0, 0, jobs=2))
        with published.recounting() as later:
            later.add(ListCount("", "success", 0, 0, jobs=1))
    assert published.counts is later
    assert published.counts.length(JobQuery(("success",), "created")) == 1
