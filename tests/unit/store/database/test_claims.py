"""What a new job takes hold of in the transaction that inserts it, and how labelled jobs are found."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import sqlalchemy as sa

from serve_app.errors import KeyReusedError
from serve_app.store.database.changes import Claims, JobAccepted, JobEnded, JobRow
from serve_app.store.database.idempotency_keys import KEY_S
from serve_app.store.database.jobs import Jobs
from serve_app.store.database.queries import ListJobs
from serve_app.store.database.schema import JOBS


@pytest.fixture
def jobs(database_url):
    database = Jobs(database_url)
    yield database
    database.close()


def accepted(order: int, key: str | None = None, created_s: float = 5.0, **labels: str) -> JobAccepted:
    row = JobRow(f"job-{order}", 0.0, order, {}, (), None, {}, created_s=created_s, queued_seq=order, labels=labels)
    return JobAccepted(row, Claims(key))


def listed(jobs: Jobs, query: ListJobs) -> list[str]:
    return [job.job_id for job in jobs.query(1, query)]


def test_a_key_is_one_jobs_also_after_a_restart(jobs, database_url):
    epoch = jobs.acquire("first")
    jobs.write(epoch, [accepted(1, "k")])
    again = Jobs(database_url)
    epoch = again.acquire("second")
    with pytest.raises(KeyReusedError) as refused:
        again.write(epoch, [accepted(2), accepted(3, "k"), accepted(4, "l")])
    assert refused.value.job_id == "job-3"
    assert listed(again, ListJobs(10)) == ["job-1"], "all are written or none"
    again.write(epoch, [accepted(2), accepted(4, "l")])
    again.close()


def test_of_two_jobs_with_a_key_in_one_transaction_the_second_is_refused(jobs):
    epoch = jobs.acquire("me")
    with pytest.raises(KeyReusedError) as refused:
        jobs.write(epoch, [accepted(1, "k"), accepted(2, "k")])
    assert refused.value.job_id == "job-2"


def test_a_job_that_is_written_twice_keeps_its_key_and_labels(jobs):
    epoch = jobs.acquire("me")
    for _ in range(2):
        jobs.write(epoch, [accepted(1, "k", a="1")])
    assert listed(jobs, ListJobs(10, labels={"a": "1"})) == ["job-1"]


def test_a_key_is_free_again_after_its_time(jobs):
    epoch = jobs.acquire("me")
    jobs.write(epoch, [accepted(1, "k", created_s=10.0)])
    jobs.write(epoch, [accepted(2, "k", created_s=11.0 + KEY_S)])
    with pytest.raises(KeyReusedError):
        jobs.write(epoch, [accepted(3, "k", created_s=10.0 + 2 * KEY_S)])


def test_labels_come_back_and_find_their_jobs_the_newest_first(jobs):
    epoch = jobs.acquire("me")
    jobs.write(epoch, [accepted(1, a="1", b="2"), accepted(2, a="1"), accepted(3), accepted(4, b="2", a="1")])
    assert jobs.job("job-4").labels == {"a": "1", "b": "2"}
    assert listed(jobs, ListJobs(10, labels={"a": "1", "b": "2"})) == ["job-4", "job-1"]
    assert listed(jobs, ListJobs(1, 4, {"a": "1"})) == ["job-2"]
    assert listed(jobs, ListJobs(2)) == ["job-4", "job-3"]


def test_forgotten_jobs_take_their_labels_along(jobs):
    epoch = jobs.acquire("me")
    gone = accepted(1, a="1")
    jobs.write(epoch, [gone, accepted(2, a="1")])
    jobs.write(epoch, [JobEnded("job-1", "cancelled", 6.0, 9, replace(gone.row).failure)])
    jobs.forget(epoch, None)
    again = replace(gone, row=replace(gone.row, job_id="other", labels={}))
    jobs.write(epoch, [again])
    assert listed(jobs, ListJobs(10, labels={"a": "1"})) == ["job-2"], "a place in the order may be given again"


def test_credentials_that_an_earlier_release_wrote_down_go_as_a_scheduler_starts(jobs, database_url):
    epoch = jobs.acquire("me")
    jobs.write(epoch, [accepted(1)])
    opened = sa.create_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    with opened.begin() as connection:
        kept = json.dumps({"auth_token_comfy_org": "secret", "a": 1})
        connection.execute(sa.update(JOBS).values(extra_data=kept))
    opened.dispose()
    jobs.acquire("me")
    assert jobs.job("job-1").extra_data == {"a": 1}
