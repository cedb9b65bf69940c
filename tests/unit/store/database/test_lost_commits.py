"""Whatever is written twice, because the answer to its COMMIT was lost, is in the database once and as it should be."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import pytest

from serve_app.errors import ChangeRefusedError, DatabaseAwayError
from serve_app.events import Failure
from serve_app.store.database.changes import (
    Change,
    CountersReserved,
    JobAccepted,
    JobCached,
    JobEnded,
    JobLostReplica,
    JobRow,
    JobStarted,
    OutputRecorded,
    OwnerCharged,
    TenantUsed,
)
from serve_app.store.database.jobs import Jobs
from serve_app.store.files.reserved import Contents
from tests.unit.store.lost_commits import losing_commits
from tests.unit.store.reserving import reserve

ROW = JobRow("", 0.25, 0, {"1": {"inputs": {"x": 0.1}}}, ("1",), None, {"é": [1.5]}, created_s=1e9 / 7, queued_seq=1)


DAY = 20_000


def life(order: int, ending: str) -> tuple[Change, ...]:
    """All that can happen to one job, in order."""
    job_id, seq = f"job {order}", (order << 8) + 1
    row = replace(ROW, job_id=job_id, order=order, queued_seq=seq, client_id="me" if order % 2 else None)
    recorded = [OutputRecorded(job_id, node_id, {"images": [{"n": order}]}, seq + 3 + int(node_id)) for node_id in "12"]
    return (
        JobAccepted(row),
        JobStarted(job_id, 2.1, seq + 1, ("4",)),
        JobCached(job_id, ("4", "5")),
        JobLostReplica(job_id, order, 1),
        CountersReserved(job_id, "1", f"output/{order}", 1, Contents("_.png", ("0",))),
        *recorded,
        JobEnded(job_id, ending, 3.3, seq + 9, Failure(message="b")),  # type: ignore[arg-type]
        TenantUsed(job_id, f"tenant {order}", DAY, 0.5 + order),
        OwnerCharged("", f"client {order}", 1 + order, 3.4, 8.4, job_id),
    )


LIVES = [life(order, ending) for order, ending in enumerate(("success", "error", "cancelled"))]


def batches(changes: Sequence[Change], cuts: Sequence[int]) -> list[Sequence[Change]]:
    bounds = [0, *cuts, len(changes)]
    return [changes[start:stop] for start, stop in itertools.pairwise(bounds)]


def test_a_life_holds_every_kind_of_change():
    assert {type(change) for change in LIVES[0]} == set(get_args(Change))


def test_changes_written_again_after_a_lost_commit_leave_what_they_would_have_left(database_url):
    jobs = Jobs(database_url)
    epoch = jobs.acquire("me")
    for changes in LIVES:
        jobs.write(epoch, changes)
    expected = [jobs.job(changes[0].job_id) for changes in LIVES]
    used = [TenantUsed("", f"tenant {order}", DAY, 0.5 + order) for order in range(3)]
    # Every way of cutting the lives of three jobs, side by side, into transactions.
    together = [change for step in zip(*LIVES, strict=True) for change in step]
    for cuts in itertools.chain.from_iterable(itertools.combinations(range(1, len(LIVES[0])), n) for n in range(5)):
        jobs.forget(epoch, None)
        with losing_commits(jobs.engine):
            for batch in batches(together, [len(LIVES) * cut for cut in cuts]):
                with pytest.raises(DatabaseAwayError):
                    jobs.write(epoch, batch)
                jobs.write(epoch, batch)
        assert [jobs.job(changes[0].job_id) for changes in LIVES] == expected
        # Beside the tenants' there is the row of the day on which these jobs, of no tenant, saved their files.
        assert [each for each in jobs.usage(DAY) if each.tenant] == used
    jobs.close()


@pytest.mark.parametrize(
    "other",
    [
        JobAccepted(replace(ROW, job_id="job 0", prompt={})),
        JobAccepted(replace(ROW, job_id="another", order=0)),
        OutputRecorded("job 0", "1", {"images": []}, 4),
    ],
)
def test_a_row_that_is_there_but_otherwise_is_refused(database_url, other):
    jobs = Jobs(database_url)
    epoch = jobs.acquire("me")
    jobs.write(epoch, LIVES[0])
    before = jobs.job("job 0")
    with pytest.raises(ChangeRefusedError) as refused:
        jobs.write(epoch, [other])
    assert refused.value.job_id == other.job_id
    assert jobs.job("job 0") == before
    jobs.close()


def test_counters_specs_and_the_lease_are_the_same_after_a_lost_commit(database_url):
    jobs = Jobs(database_url)
    with losing_commits(jobs.engine):
        with pytest.raises(DatabaseAwayError):
            jobs.acquire("me")
        epoch = jobs.acquire("me")
        for job_id, first in (("a", 5), ("b", 7)):
            with pytest.raises(DatabaseAwayError):
                reserve(jobs, epoch, job_id, "1", "output/x", 5, contents(2))
            assert reserve(jobs, epoch, job_id, "1", "output/x", 5, contents(2)) == (first, True)
        tried_again = CountersReserved("d", "1", "output/x", 5, contents(2))
        with pytest.raises(DatabaseAwayError):
            jobs.write(epoch, [tried_again])
        jobs.write(epoch, [tried_again])
        assert (tried_again.first, tried_again.again) == (9, False), "nobody was given them before"
        with pytest.raises(DatabaseAwayError):
            jobs.save_specs(epoch, "gpu", [{"class_type": "X"}], [])
        jobs.save_specs(epoch, "gpu", [{"class_type": "X"}], [])
    assert jobs.specs() == {"gpu": [{"class_type": "X"}]}
    assert reserve(jobs, epoch, "c", "1", "output/x", 0, contents(1)) == (11, False)
    jobs.close()


def contents(count: int) -> Contents:
    """Files to be saved."""
    return Contents(".png", tuple(map(str, range(count))))
