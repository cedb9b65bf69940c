"""Counts ended jobs, and deletes them from the database and from memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from serve_app.scheduler.core.events import FilesGone
from serve_app.scheduler.core.results import Results
from serve_app.scheduler.events.published_jobs import PublishedJobs
from serve_app.store.database.jobs import Jobs
from serve_app.store.database.queries import Query
from serve_app.store.files.reserved import shown
from serve_app.store.retention.named_files import StoredPath, ref_of
from serve_app.store.retention.removal import PORTION, Removed, RemoveJobs


class EndedJobs:
    """The ended jobs of one scheduler. results: the result index. apply: passes an event to the machine. in_database:
    as `SchedulerLease`'s; beside: runs reads in other threads.
    """

    def __init__(
        self,
        jobs: Jobs,
        epoch: int,
        published: PublishedJobs,
        results: Results,
        *,
        apply: Callable[[FilesGone], Awaitable[None]],
        query: Callable[[Query[Removed]], Awaitable[Removed]],
        in_database: Callable[..., Awaitable[Any]],
        beside: Callable[..., Awaitable[Any]],
    ) -> None:
        self._jobs = jobs
        self._epoch = epoch
        self._published = published
        self._results = results
        self._apply = apply
        self._query = query
        self._in_database = in_database
        self._beside = beside

    async def count(self) -> None:
        """Count the published ended jobs in the database; later ones are counted as they end."""
        with self._published.recounting() as counts:
            for found in await self._beside(self._jobs.ended_counts, self._published.seq):
                counts.add(found)

    async def forget(self, job_ids: Sequence[str] | None, tenant: str) -> None:
        """As `SchedulerClient.forget`."""
        await self._in_database(self._jobs.forget, self._epoch, job_ids, tenant)
        await self.forgotten(job_ids, tenant)

    async def remove(self, job_ids: Sequence[str] | None, tenant: str) -> tuple[int, tuple[str, ...]]:
        """As `SchedulerClient.remove`, but their files are only put on the list of files to delete."""
        left, count, unfinished = None if job_ids is None else tuple(dict.fromkeys(job_ids)), 0, list[str]()
        more = True
        while more:
            removed = await self._query(RemoveJobs(left, tenant))
            await self.forgotten(removed.ended)
            await self.forget_files(removed.files)
            left, more = None if left is None else left[PORTION:], removed.more
            count += len(removed.ended)
            unfinished += removed.unfinished
        return count, tuple(unfinished)

    async def forgotten(self, job_ids: Sequence[str] | None, tenant: str = "") -> None:
        """Forget jobs that are deleted from the database: these, or all."""
        self._published.forget(job_ids, tenant)
        await self.count()

    async def forget_files(self, files: Sequence[StoredPath]) -> None:
        """Remove cached results that name one of these files."""
        # A result has no tenant. One that is removed needlessly is only computed again.
        gone = {(ref.area, ref.filename) for ref in map(ref_of, files)}
        remembered = self._results.remembered() if files else []

        def named(ui: Mapping[str, Any]) -> bool:
            return any((ref.area, ref.filename) in gone for ref in shown(ui))

        if found := await asyncio.to_thread(lambda: [signature for signature, ui in remembered if named(ui)]):
            await self._apply(FilesGone(tuple(found)))
