"""Requests a minute: a bucket of each tenant's, and what is answered who has emptied it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.api import request_rate
from serve_app.api.request_rate import RequestRate
from serve_app.config.quotas import Quota, Quotas
from serve_app.errors import QuotaError
from serve_app.store.tenants.audit import ReadAudit
from tests.unit.api.tenant_world import WORKFLOW, world


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def refusal(rate: RequestRate, tenant: str = "studio") -> QuotaError:
    with pytest.raises(QuotaError) as caught:
        rate.take(tenant)
    return caught.value


def test_as_many_as_a_minute_brings_come_at_once_and_then_one_after_another() -> None:
    clock = Clock()
    rate = RequestRate({"studio": 30, "other": 30, "free": None}.get, clock)
    for _ in range(30):
        rate.take("studio")
    error = refusal(rate)
    assert (error.quota, error.limit, error.remaining, error.retry_after_s) == ("requests_a_minute", 30, 0, 2)
    rate.take("other")
    for _ in range(1000):
        rate.take("free")
    clock.now_s += 1.0
    refusal(rate)
    clock.now_s += 1.0  # being refused costs nothing
    rate.take("studio")
    refusal(rate)
    clock.now_s += 3600.0
    for _ in range(30):
        rate.take("studio")
    refusal(rate)


def test_a_quota_of_zero_refuses_every_request() -> None:
    error = refusal(RequestRate({"studio": 0}.get, Clock()))
    assert (error.limit, error.retry_after_s) == (0, 60)


def test_buckets_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_rate, "TENANTS", 2)
    rate = RequestRate(lambda _: 1, Clock())
    for tenant in ("one", "two", "three"):
        rate.take(tenant)
    assert list(rate.buckets) == ["two", "three"]
    refusal(rate, "three")


async def test_beyond_it_each_dialect_answers_429_and_the_audit_log_has_it(tmp_path: Path) -> None:
    async with world(tmp_path) as made:
        made.service.limits = replace(made.service.limits, quotas=Quotas(tenants={"a": Quota(requests_a_minute=2)}))
        async with made.client(made.keys["a"]) as a, made.client(made.keys["b"]) as b, made.client(None) as nobody:
            for _ in range(2):
                assert (await a.get("/api/queue")).status_code == 200
            answers = [await a.get(path) for path in ("/queue", "/api/queue", "/api/v2/jobs")]
            assert [answer.status_code for answer in answers] == [429, 429, 429]
            for answer in answers:
                assert answer.headers["x-quota"] == "requests_a_minute"
                assert (answer.headers["x-ratelimit-limit"], answer.headers["x-ratelimit-remaining"]) == ("2", "0")
                assert 1 <= int(answer.headers["retry-after"]) <= 30
            assert answers[1].json()["error"]["type"] == "quota_exceeded"
            assert answers[2].json()["error"]["code"] == "rate_limited"
            assert (await b.get("/queue")).status_code == 200
            assert (await nobody.get("/healthz")).status_code == 200
        root = {"Authorization": f"Bearer {made.keys['root']}", "X-Tenant": "a"}
        async with made.client(None) as operator:
            assert (await operator.get("/queue", headers=root)).status_code == 200
        await made.app.state.authenticator.audit.close()
        entries = await made.service.query(ReadAudit(10, whose="a"))
        assert [entry.result for entry in entries] == [429, 429, 429]
        assert "requests_a_minute" in entries[0].reason


async def test_an_accepted_job_gets_the_most_exhausted_quota_in_each_dialect(tmp_path: Path) -> None:
    quotas = Quotas(
        tenants={
            "a": Quota(queued=10, gpu_s_a_day=1_000_000, requests_a_minute=8),
            "c": Quota(queued=2, gpu_s_a_day=1_000_000, bytes_stored=5_000_000_000, requests_a_minute=100),
            "d": Quota(gpu_s_a_day=1_234_567.5),
        }
    )
    async with world(tmp_path, quotas=quotas) as made:
        made.app.state.authenticator.rate.clock = Clock()
        bodies = {"/prompt": {"prompt": WORKFLOW}, "/api/prompt": {"prompt": WORKFLOW}}
        bodies["/api/v2/jobs"] = {"workflow": WORKFLOW}

        async def told(key: str) -> list[tuple[str, ...]]:
            async with made.client(key) as client:
                answers = [await client.post(path, json=body) for path, body in bodies.items()]
            assert all(("retry-after" in answer.headers) == answer.is_error for answer in answers)
            names = ("x-quota", "x-ratelimit-limit", "x-ratelimit-remaining")
            return [tuple(answer.headers.get(name, "") for name in names) for answer in answers]

        requests = [("requests_a_minute", "8", left) for left in ("7", "6", "5")]
        assert await told(made.keys["a"]) == requests
        assert await told(await made.key("c")) == [("queued", "2", left) for left in ("1", "0", "0")]
        assert await told(await made.key("d")) == [("gpu_s_a_day", "1234567.5", "1234567.5")] * 3
        assert await told(made.keys["b"]) == [("", "", "")] * 3
