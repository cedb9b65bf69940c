"""Looks up jobs, lists and events for clients: from memory, else from the database."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from serve_app.errors import JobMissingError
from serve_app.events import Event
from serve_app.scheduler.core.records import JobRecord
from serve_app.scheduler.events.event_stream import EventStream
from serve_app.scheduler.events.published_jobs import PublishedJobs
from serve_app.scheduler.jobs.views import brief as briefly
from serve_app.scheduler.jobs.views import live_view, progress_of, row_view, unfinished_window
from serve_app.scheduler.protocol.client import JobKeys, JobProgress, JobView
from serve_app.store.database.changes import JobQuery, JobRow
from serve_app.store.database.jobs import Jobs


class JobLookup:
    """Looks up the jobs of one scheduler. unfinished: the machine's jobs, some of which are not published yet.

    in_database: as `SchedulerLease`'s. beside: runs reads of lists in other threads.
    """

    def __init__(
        self,
        jobs: Jobs,
        published: PublishedJobs,
        unfinished: Mapping[str, JobRecord],
        in_database: Callable[..., Awaitable[Any]],
        beside: Callable[..., Awaitable[Any]],
    ) -> None:
        self._jobs = jobs
        self._published = published
        self._unfinished = unfinished
        self._in_database = in_database
        self._beside = beside

    async def row(self, job_id: str) -> JobRow | None:
        """Return a job's row, or None. A row from memory may not be durable yet."""
        if job := self._unfinished.get(job_id):
            return job.row
        row: JobRow | None = await self._in_database(self._jobs.job, job_id)
        return row

    async def job(self, job_id: str, tenant: str) -> JobView | None:
        """As `SchedulerClient.job`."""
        if job := self._published.unended.get(job_id):
            return live_view(job) if job.row.is_of(tenant) else None
        if success := self._published.successes.get(job_id):
            return success if success.is_of(tenant) else None
        row = await self._in_database(self._jobs.job, job_id)
        return None if row is None or not row.is_of(tenant) else row_view(row)

    def progress(self, job_id: str, tenant: str) -> JobProgress | None:
        """As `SchedulerClient.progress`."""
        unended = self._published.unended.within(tenant)
        if (job := unended.get(job_id)) is None:
            return None
        stream = self._published.stream(job_id)
        events = stream.events if stream else ()
        how = progress_of(job, unended.waiting.position(job_id), events, time.time())
        preview = self._published.preview(job_id)
        return how if preview is None else replace(how, preview=preview.seq)

    def preview(self, job_id: str, tenant: str) -> Event | None:
        """As `SchedulerClient.preview`."""
        return self._published.preview(job_id) if job_id in self._published.unended.within(tenant) else None

    async def stream(self, job_id: str, tenant: str) -> EventStream:
        """Return a job's event stream, reconstructed from the database if it is not in memory.

        Errors: JobMissingError.
        """
        if not tenant or await self._is_of(job_id, tenant):
            if stream := self._published.stream(job_id):
                return stream
            if row := await self.row(job_id):
                return self._published.rebuild(row)
        raise JobMissingError(f"no job has the id {job_id!r}")

    async def _is_of(self, job_id: str, tenant: str) -> bool:
        if success := self._published.successes.get(job_id):
            return success.is_of(tenant)
        row = await self.row(job_id)
        return row is not None and row.is_of(tenant)

    async def keys(self, query: JobQuery) -> JobKeys:
        """As `SchedulerClient.keys`. Only lists of one workflow are counted by a scan."""
        unended = self._published.unended
        if (window := unfinished_window(unended, query)) is not None:
            jobs, total = window
            return JobKeys(tuple((job.row.job_id, None) for job in jobs), total)
        if query.workflow_id is not None:
            total = await self._beside(self._jobs.count, query)
        else:
            total, query = self._published.counts.length(query), self._published.counts.near(query)
        keys = [] if query.limit == 0 else await self._beside(self._jobs.keys, query)
        return JobKeys(tuple(keys), total)

    async def views(self, job_ids: Sequence[str], tenant: str, *, brief: bool) -> tuple[JobView, ...]:
        """As `SchedulerClient.views`."""
        unended, successes = self._published.unended, self._published.successes
        kept = {job_id: view for job_id in job_ids if (view := successes.get(job_id)) is not None}
        live = {job_id: live_view(job) for job_id in job_ids if (job := unended.get(job_id)) is not None}
        known = kept | live
        if missing := [job_id for job_id in job_ids if job_id not in known]:
            for row in await self._beside(partial(self._jobs.rows, missing, brief=brief)):
                job = None if row.ended else unended.get(row.job_id)
                known[row.job_id] = row_view(row) if job is None else live_view(job)
        found = (known[job_id] for job_id in job_ids if job_id in known)
        views = (view for view in found if view.is_of(tenant))
        return tuple(map(briefly, views)) if brief else tuple(views)
