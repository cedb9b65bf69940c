"""Quotas where they are true: in the scheduler, whoever submits, and over restarts."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.config.quotas import Quota, Quotas
from serve_app.errors import QuotaError
from serve_app.scheduler.jobs.usage import DAY_S
from serve_app.store.database.changes import Submission, TenantUsed
from tests.unit.scheduler import test_scheduler
from tests.unit.scheduler.test_scheduler import Life, living


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'jobs.sqlite'}"


def limited(monkeypatch: pytest.MonkeyPatch, quota: Quota) -> None:
    """Let schedulers from here on give tenants a quota."""
    monkeypatch.setattr(test_scheduler, "RULES", replace(test_scheduler.RULES, quotas=Quotas(default=quota)))


async def submit(life: Life, tenant: str) -> str:
    prompt = {"1": {"class_type": "Save", "inputs": {"seed": uuid.uuid4().int % 2**31}}}
    job_id = str(uuid.uuid4())
    await life.scheduler.submit(Submission(job_id, prompt, ("1",), tenant=tenant))
    return job_id


async def test_submissions_at_the_same_time_never_pass_the_quota(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, Quota(queued=5))
    async with living(url) as life:
        life.free.clear()
        for _ in range(2):  # as many as run; no more start while they are held
            await submit(life, "")
        answers = await asyncio.gather(*(submit(life, "studio") for _ in range(20)), return_exceptions=True)
        assert sum(isinstance(answer, str) for answer in answers) == 5
        refused = [answer for answer in answers if isinstance(answer, QuotaError)]
        assert len(refused) == 15
        assert {(error.quota, error.limit, error.remaining) for error in refused} == {("queued", 5, 0)}
        assert isinstance(await submit(life, "other"), str)
        life.free.set()


async def test_what_a_tenant_has_used_today_is_known_after_a_restart(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, Quota(gpu_s_a_day=1e-6))
    async with living(url) as life:
        await life.finish(await submit(life, "studio"))
        [used] = life.jobs.usage(0)
        assert used.tenant == "studio"
        assert used.gpu_s > 1e-6
    async with living(url) as life:
        with pytest.raises(QuotaError, match=f"has used {used.gpu_s:.1f} s of GPUs today") as refused:
            await submit(life, "studio")
        assert (refused.value.quota, refused.value.remaining) == ("gpu_s_a_day", 0)
        await submit(life, "other")


async def test_totals_may_be_written_twice_and_those_of_other_days_stay(url: str) -> None:
    async with living(url) as life:
        today = int(time.time() // DAY_S)
        for _ in range(2):
            earlier = TenantUsed("j", "studio", today - 1, 3.0)
            life.jobs.write(life.epoch, [earlier, TenantUsed("j", "studio", today, 1.0)])
            life.jobs.write(life.epoch, [TenantUsed("j", "studio", today, 2.0), TenantUsed("k", "studio", today, 2.5)])
        assert life.jobs.usage(today) == [TenantUsed("", "studio", today, 2.5)]
        assert [used.gpu_s for used in life.jobs.usage(0)] == [3.0, 2.5]
