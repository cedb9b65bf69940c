"""Rendered ended jobs are cached, within a limit of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from serve_app.events import Failure
from serve_app.scheduler.protocol.client import JobKeys, JobView
from serve_app.service import job_list_cache
from serve_app.service.job_list_cache import JobListCache, Show
from serve_app.service.tenant_jobs import TenantJobs
from serve_app.store.database.changes import JobKey, JobQuery

QUERY = JobQuery(("success", "running"), "ended")
SECRETS = {"auth_token_comfy_org": "secret", "kept": 1}


def view(job_id: str, ended_s: float | None = 2.0) -> JobView:
    return JobView(
        job_id=job_id,
        number=0.0,
        state="running" if ended_s is None else "success",
        prompt={},
        order=0,
        queued_seq=0,
        targets=(),
        client_id=None,
        extra_data=SECRETS,
        created_s=0.0,
        started_s=1.0,
        ended_s=ended_s,
        percent=0,
        outputs={},
        failure=Failure(),
        cached=(),
    )


class Lists:
    """A scheduler with these jobs, which notes whose views were read."""

    def __init__(self, *jobs: tuple[JobKey, JobView]) -> None:
        self.jobs = dict(jobs)
        self.asked: list[str] = []

    async def keys(self, query: JobQuery) -> JobKeys:
        return JobKeys(tuple(self.jobs), len(self.jobs))

    async def views(self, job_ids: Sequence[str], brief: bool, tenant: str = "") -> tuple[JobView, ...]:
        self.asked += job_ids
        return tuple(view for view in self.jobs.values() if view.job_id in job_ids)


class Shown:
    """The operator's list of one scheduler's jobs."""

    def __init__(self, scheduler: Any) -> None:
        self._jobs, self._shown = TenantJobs(scheduler, ""), JobListCache()

    async def list(self, query: JobQuery, show: Show) -> tuple[dict[str, bytes], int]:
        return await self._shown.list(self._jobs, query, show)


def lists_and_shown(*jobs: tuple[JobKey, JobView]) -> tuple[Lists, Shown]:
    scheduler = Lists(*jobs)
    return scheduler, Shown(scheduler)


def show(job: JobView) -> bytes:
    return f"{job.job_id} {job.state} {dict(job.extra_data)}".encode()


async def test_an_ended_job_is_read_once_and_a_running_one_each_time() -> None:
    scheduler, shown = lists_and_shown((("a", 7), view("a")), (("b", None), view("b", None)), (("c", 9), view("c")))
    first, total = await shown.list(QUERY, show)
    assert (list(first), total) == (["a", "b", "c"], 3)
    assert b"secret" not in b"".join(first.values())
    assert await shown.list(QUERY, show) == (first, 3)
    assert scheduler.asked == ["a", "b", "c", "b"]
    await shown.list(QUERY, lambda job: b"shown otherwise")
    assert scheduler.asked[4:] == ["a", "b", "c"]


async def test_an_id_used_again_after_its_job_was_forgotten_is_the_new_job() -> None:
    scheduler, shown = lists_and_shown((("a", 7), view("a")))
    before, _ = await shown.list(QUERY, show)
    scheduler.jobs = {("a", 12): replace(view("a"), state="error")}
    after, _ = await shown.list(QUERY, show)
    assert (before["a"], after["a"]) == (b"a success {'kept': 1}", b"a error {'kept': 1}")


async def test_a_job_forgotten_while_it_is_listed_is_left_out_even_if_its_id_is_reused() -> None:
    _, shown = lists_and_shown((("a", 7), view("a", None)), (("b", 8), view("b")))
    found, _ = await shown.list(QUERY, show)
    assert list(found) == ["b"]


async def test_the_least_recently_used_entry_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_list_cache, "KEPT_BYTES", 2 * len(show(job_list_cache.without_secrets(view("a")))))
    scheduler, shown = lists_and_shown(*(((job_id, 1), view(job_id)) for job_id in "abc"))
    await shown.list(QUERY, show)
    scheduler.asked.clear()
    scheduler.jobs = {("c", 1): view("c"), ("b", 1): view("b")}
    await shown.list(QUERY, show)
    assert scheduler.asked == []
    scheduler.jobs = {("a", 1): view("a")}
    await shown.list(QUERY, show)
    assert scheduler.asked == ["a"]
