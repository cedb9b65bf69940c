"""The scheduler's jobs of one tenant, by the ids that its clients know.

In the scheduler a tenant's job is ID@TENANT (`job_id_of`), so two tenants may use the same id, and neither can reach
the other's job. The operator, tenant "", has every job, by its id in the scheduler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from serve_app.errors import JobMissingError
from serve_app.events import Event
from serve_app.scheduler.protocol.client import (
    Accepted,
    JobKeys,
    JobProgress,
    JobView,
    QueueBounds,
    QueueItem,
    QueueView,
    SchedulerClient,
    Unfinished,
)
from serve_app.service.submissions import abbreviated, is_job_id
from serve_app.store.database.changes import JobQuery, Submission
from serve_app.store.tenants.tenants import MARK, is_tenant, job_id_of, prompt_id_of


class TenantJobs:
    """The methods of `SchedulerClient` of the same names, with the tenant's ids.

    Events keep the scheduler's `job_id`.
    """

    def __init__(self, scheduler: SchedulerClient, tenant: str) -> None:
        self._scheduler = scheduler
        self.tenant = tenant

    def is_id(self, value: object) -> bool:
        """Whether a value has the form of a job's id in the tenant's namespace."""
        if self.tenant or not isinstance(value, str):
            return is_job_id(value)
        prompt_id, mark, tenant = value.partition(MARK)
        return is_job_id(prompt_id) and (not mark or is_tenant(tenant))

    async def submit(self, submission: Submission) -> Accepted:
        own = replace(submission, job_id=self._inside(submission.job_id), tenant=self.tenant)
        return replace(await self._scheduler.submit(own), job_id=submission.job_id)

    async def answered(self, job_id: str) -> None:
        await self._scheduler.answered(self._inside(job_id))

    async def cancel(self, job_id: str) -> bool:
        return self.is_id(job_id) and await self._scheduler.cancel(self._inside(job_id), self.tenant)

    async def cancel_all(self, job_ids: Sequence[str] | None, which: Unfinished | None = None) -> int:
        return await self._scheduler.cancel_all(self._all_inside(job_ids), which, self.tenant)

    async def job(self, job_id: str) -> JobView | None:
        view = await self._scheduler.job(self._inside(job_id), self.tenant) if self.is_id(job_id) else None
        return None if view is None else self._view(view)

    async def progress(self, job_id: str) -> JobProgress | None:
        return await self._scheduler.progress(self._inside(job_id), self.tenant) if self.is_id(job_id) else None

    async def preview(self, job_id: str) -> Event | None:
        return await self._scheduler.preview(self._inside(job_id), self.tenant) if self.is_id(job_id) else None

    async def events(self, job_id: str, after: int, timeout_s: float) -> list[Event]:
        missing = JobMissingError(f"no job has the id {abbreviated(job_id)}")
        if not self.is_id(job_id):
            raise missing
        try:
            return await self._scheduler.events(self._inside(job_id), after, timeout_s, self.tenant)
        except JobMissingError:
            raise missing from None

    async def job_trace(self, job_id: str) -> Sequence[tuple[float, str]]:
        return await self._scheduler.job_trace(self._inside(job_id), self.tenant)

    async def queue(self, bounds: QueueBounds) -> QueueView:
        view = await self._scheduler.queue(bounds, self.tenant)
        return replace(view, running=tuple(map(self._item, view.running)), pending=tuple(map(self._item, view.pending)))

    async def keys(self, query: JobQuery) -> JobKeys:
        found = await self._scheduler.keys(replace(query, tenant=self.tenant))
        return JobKeys(tuple((self._outside(job_id), end) for job_id, end in found.keys), found.total)

    async def views(self, job_ids: Sequence[str], *, brief: bool) -> tuple[JobView, ...]:
        views = await self._scheduler.views(tuple(map(self._inside, job_ids)), brief, self.tenant)
        return tuple(map(self._view, views))

    async def forget(self, job_ids: Sequence[str] | None) -> None:
        await self._scheduler.forget(self._all_inside(job_ids), self.tenant)

    async def remove(self, job_ids: Sequence[str] | None) -> tuple[int, tuple[str, ...]]:
        count, unfinished = await self._scheduler.remove(self._all_inside(job_ids), self.tenant)
        return count, tuple(map(self._outside, unfinished))

    def _inside(self, job_id: str) -> str:
        return job_id_of(job_id, self.tenant)

    def _all_inside(self, job_ids: Sequence[str] | None) -> Sequence[str] | None:
        return job_ids if job_ids is None else tuple(map(self._inside, job_ids))

    def _outside(self, job_id: str) -> str:
        return prompt_id_of(job_id) if self.tenant else job_id

    def _view(self, view: JobView) -> JobView:
        return replace(view, job_id=prompt_id_of(view.job_id)) if self.tenant else view

    def _item(self, item: QueueItem) -> QueueItem:
        return item._replace(job_id=prompt_id_of(item.job_id)) if self.tenant else item
