"""The outbox: written with the change it tells of, once, and in the order of a job's events."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from serve_app.errors import StaleEpochError
from serve_app.events import Failure
from serve_app.store.database.changes import Change, JobAccepted, JobEnded, JobRow, JobStarted, OutputRecorded
from serve_app.store.database.jobs import Jobs
from serve_app.store.database.webhooks import (
    EVENTS,
    PAYLOAD_BYTES,
    AddWebhook,
    Attempt,
    DeleteWebhook,
    Deliveries,
    Heads,
    RecordAttempts,
    SendAgain,
    TidyDeliveries,
    Webhook,
    Webhooks,
)

HOOK = Webhook("hook", "https://example.com/", EVENTS, "whsec_x", 1.0)
ROW = JobRow("a", 0.0, 0, {}, ("1",), None, {}, created_s=5.0, queued_seq=1, labels={"k": "v"})
LIFE: tuple[Change, ...] = (
    JobAccepted(ROW),
    JobStarted("a", 6.0, 2),
    OutputRecorded("a", "1", {"images": [{"filename": "x.png"}]}, 4),
    JobEnded("a", "success", 7.0, 5, Failure()),
)


@pytest.fixture
def jobs(database_url):
    database = Jobs(database_url)
    database.acquire("me")
    yield database
    database.close()


def told(jobs: Jobs, hook: Webhook = HOOK) -> list[tuple[str, str]]:
    return [(d.event, d.state) for d in reversed(jobs.query(1, Deliveries(hook.webhook_id, 100)))]


def test_without_a_webhook_nothing_is_written_to_the_outbox(jobs):
    assert jobs.write(1, LIFE) is False
    jobs.query(1, AddWebhook(HOOK, 10))
    assert told(jobs) == []


@pytest.mark.parametrize("at_once", [True, False])
def test_each_subscribed_event_is_in_the_outbox_once_however_often_it_is_written(jobs, at_once):
    jobs.query(1, AddWebhook(HOOK, 10))
    some = replace(HOOK, webhook_id="some", events=("job.succeeded",))
    jobs.query(1, AddWebhook(some, 10))
    for changes in [LIFE] if at_once else [[change] for change in LIFE]:
        for _ in range(2):
            jobs.write(1, changes)
    assert told(jobs) == [("job.queued", "pending"), ("job.running", "pending"), ("job.succeeded", "pending")]
    assert told(jobs, some) == [("job.succeeded", "pending")]
    first, _, last = [json.loads(d.payload) for d in reversed(jobs.query(1, Deliveries("hook", 9)))]
    assert first["type"] == "job.queued"
    assert first["data"] == {
        "id": "a",
        "status": "queued",
        "metadata": {"k": "v"},
        "created_at": "1970-01-01T00:00:05Z",
        "started_at": None,
        "completed_at": None,
    }
    assert last["timestamp"] == last["data"]["completed_at"] == "1970-01-01T00:00:07Z"
    assert last["data"]["outputs"] == {"1": {"images": [{"filename": "x.png"}]}}


def test_a_change_that_is_not_made_is_not_in_the_outbox(jobs, database_url):
    jobs.query(1, AddWebhook(HOOK, 10))
    other = Jobs(database_url)
    other.acquire("newer")
    with pytest.raises(StaleEpochError):
        jobs.write(1, LIFE)
    assert told(other) == []
    other.write(2, LIFE)
    assert len(told(other)) == 3, "a scheduler finds the webhooks of the one before"
    other.close()


def test_a_tenant_gets_events_of_its_own_jobs_and_the_operator_of_everyones(jobs):
    hooks = [replace(HOOK, webhook_id=f"of {tenant}", tenant=tenant) for tenant in ("", "x", "y")]
    for hook in hooks:
        jobs.query(1, AddWebhook(hook, 10))
    jobs.write(1, [JobAccepted(replace(ROW, tenant="x"))])
    assert [len(told(jobs, hook)) for hook in hooks] == [1, 1, 0]
    assert jobs.query(1, Webhooks("x")) == (hooks[1],)
    assert jobs.query(1, Webhooks()) == tuple(hooks)


def test_a_failure_is_sent_without_its_traceback_and_outputs_up_to_a_size(jobs):
    jobs.query(1, AddWebhook(HOOK, 10))
    failure = Failure(node="1", class_type="X", exception_type="E", message="m" * 9999, traceback=("secret",))
    large = OutputRecorded("a", "1", {"text": ["x" * PAYLOAD_BYTES]}, 4)
    jobs.write(1, [JobAccepted(ROW), large, JobEnded("a", "error", 7.0, 5, failure)])
    newest = jobs.query(1, Deliveries("hook", 1))[0].payload
    data = json.loads(newest)["data"]
    assert (data["error"]["node_id"], len(data["error"]["message"]), data["outputs"]) == ("1", 2000, None)
    assert "secret" not in newest
    assert len(newest) < 5000


def test_only_the_first_event_of_a_job_that_waits_is_at_the_head(jobs):
    jobs.query(1, AddWebhook(HOOK, 10))
    jobs.write(1, LIFE)
    jobs.write(1, [JobAccepted(replace(ROW, job_id="b", order=1, queued_seq=8, created_s=9.0))])
    heads = jobs.query(1, Heads("hook", 10))
    assert [(d.job_id, d.event) for d in heads] == [("a", "job.queued"), ("b", "job.queued")]
    later = Attempt(heads[0], "pending", 1, 10.0, 15.0, 500, "answered 500")
    jobs.query(1, RecordAttempts((later,)))
    heads = jobs.query(1, Heads("hook", 10))
    assert [(d.job_id, d.due_s, d.attempts, d.status) for d in heads] == [("b", 9.0, 0, None), ("a", 15.0, 1, 500)]
    jobs.query(1, RecordAttempts((Attempt(heads[1], "delivered", 2, 16.0, 15.0, 204, ""),)))
    assert [(d.job_id, d.event, d.due_s) for d in jobs.query(1, Heads("hook", 10))] == [
        ("b", "job.queued", 9.0),
        ("a", "job.running", 15.0),
    ]


def test_what_is_sent_again_is_not_answered_by_what_was_under_way(jobs):
    jobs.query(1, AddWebhook(HOOK, 10))
    jobs.write(1, LIFE)
    head = jobs.query(1, Heads("hook", 1))[0]
    again = jobs.query(1, SendAgain("hook", head.delivery_id, 20.0))
    assert (again.state, again.due_s) == ("pending", 20.0)
    jobs.query(1, RecordAttempts((Attempt(head, "failed", 12, 21.0, 5.0, 500, "answered 500"),)))
    assert told(jobs)[0] == ("job.queued", "pending")
    assert jobs.query(1, SendAgain("hook", "other", 20.0)) is None


def test_a_disabled_webhook_gets_nothing_until_a_delivery_is_sent_again(jobs):
    jobs.query(1, AddWebhook(HOOK, 10))
    jobs.write(1, LIFE)
    head = jobs.query(1, Heads("hook", 1))[0]
    jobs.query(1, RecordAttempts((Attempt(head, "failed", 1, 9.0, 5.0, 410, "answered 410", "gone"),)))
    assert {state for _, state in told(jobs)} == {"failed"}
    assert jobs.query(1, Webhooks())[0].disabled == "gone"
    other = replace(ROW, job_id="b", order=1, queued_seq=8)
    jobs.write(1, [JobAccepted(other)])
    assert len(told(jobs)) == 3
    jobs.query(1, SendAgain("hook", head.delivery_id, 20.0))
    jobs.write(1, [JobStarted("b", 9.0, 9)])
    assert told(jobs)[3:] == [("job.running", "pending")]


def test_there_are_no_more_webhooks_than_are_allowed_and_one_that_goes_takes_its_deliveries_along(jobs):
    assert [jobs.query(1, AddWebhook(HOOK, 1)) for _ in range(2)] == [True, True], "carried out twice"
    assert not jobs.query(1, AddWebhook(replace(HOOK, webhook_id="other"), 1))
    assert jobs.query(1, AddWebhook(replace(HOOK, webhook_id="theirs", tenant="studio"), 1)), "each tenant has its own"
    jobs.write(1, LIFE)
    assert [jobs.query(1, DeleteWebhook("hook")) for _ in range(2)] == [True, False]
    assert told(jobs) == []
    assert jobs.write(1, [JobAccepted(replace(ROW, job_id="b", order=1, queued_seq=8))]) is False


def test_what_is_late_is_given_up_and_what_is_old_or_forgotten_goes(jobs):
    jobs.query(1, AddWebhook(HOOK, 10))
    jobs.write(1, LIFE)
    jobs.query(1, TidyDeliveries(5.5, 0.0, 100.0, "late"))
    assert told(jobs)[0] == ("job.queued", "failed")
    jobs.forget(1, ["a"])
    assert told(jobs) == [("job.running", "pending"), ("job.succeeded", "pending")]
    jobs.query(1, TidyDeliveries(50.0, 0.0, 100.0, "late"))
    jobs.query(1, TidyDeliveries(0.0, 100.5, 100.0, "late"))
    assert told(jobs) == []
