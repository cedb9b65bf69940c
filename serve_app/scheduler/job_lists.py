"""Lists of jobs as clients see them: unfinished ones from memory, ended ones from there or from the database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

from serve_app.scheduler.client import JobKeys, JobView
from serve_app.scheduler.published_jobs import PublishedJobs
from serve_app.scheduler.views import brief as briefly
from serve_app.scheduler.views import live_view, row_view, unfinished_window
from serve_app.store.changes import JobQuery
from serve_app.store.jobs import Jobs

T = TypeVar("T")


class JobLists:
    """One a scheduler's life. thread: where the database is read, beside the writer, which every job waits for."""

    def __init__(self, jobs: Jobs, published: PublishedJobs, thread: Executor) -> None:
        self._jobs = jobs
        self._published = published
        self._thread = thread

    async def keys(self, query: JobQuery) -> JobKeys:
        """As `SchedulerClient.keys`. No job is counted and none that waits is read from the database."""
        unended = self._published.unended
        if (window := unfinished_window(unended, query)) is not None:
            jobs, total = window
            return JobKeys(tuple((job.row.job_id, None) for job in jobs), total)
        known = None
        if query.workflow_id is None and not query.tenant:
            counts = {**self._published.ended, "queued": len(unended.waiting), "running": len(unended.running)}
            known = sum(counts.get(state, 0) for state in set(query.states))
        if query.limit == 0 and known is not None:
            return JobKeys((), known)
        keys, total = await self._read(partial(self._jobs.keys, query, known))
        return JobKeys(tuple(keys), total)

    async def views(self, job_ids: Sequence[str], *, brief: bool) -> tuple[JobView, ...]:
        """As `SchedulerClient.views`."""
        unended, successes = self._published.unended, self._published.successes
        kept = {job_id: view for job_id in job_ids if (view := successes.get(job_id)) is not None}
        live = {job_id: live_view(job) for job_id in job_ids if (job := unended.get(job_id)) is not None}
        known = kept | live
        if missing := [job_id for job_id in job_ids if job_id not in known]:
            for row in await self._read(partial(self._jobs.rows, missing, brief=brief)):
                job = None if row.ended else unended.get(row.job_id)
                known[row.job_id] = row_view(row) if job is None else live_view(job)
        views = (known[job_id] for job_id in job_ids if job_id in known)
        return tuple(map(briefly, views)) if brief else tuple(views)

    async def _read(self, asked: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, asked)
