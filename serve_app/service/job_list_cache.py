"""Lists of jobs as bytes, with a cache of ended jobs, which never change."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from cachetools import LRUCache

from serve_app.scheduler.protocol.client import JobView
from serve_app.service.tenant_jobs import TenantJobs
from serve_app.store.database.changes import JobKey, JobQuery
from serve_app.store.tenants.credentials import without_credentials

KEPT_BYTES = 32 * 1024 * 1024
CHUNK = 200
"""How many jobs are read at once, so that a long list does not block other requests."""

Show: TypeAlias = Callable[[JobView], bytes]
"""Renders a job for a list; it must be the same function object for every list of a kind."""


class JobListCache:
    """An LRU cache of KEPT_BYTES of rendered ended jobs.

    An id may be reused once its job is forgotten; the cursor of the job's end, which is never reused, is part of the
    key.
    """

    def __init__(self) -> None:
        self._kept: LRUCache[tuple[Show, JobKey], bytes] = LRUCache(KEPT_BYTES, getsizeof=len)

    async def list(self, jobs: TenantJobs, query: JobQuery, show: Show) -> tuple[dict[str, bytes], int]:
        """Return the rendered jobs that a query finds, by id and in its order, and the number that it finds in all."""
        found = await jobs.keys(query)
        shown: dict[str, bytes] = {}
        missing: list[JobKey] = []
        for key in found.keys:
            if (kept := self._kept.get((show, key))) is None:
                missing.append(key)
            else:
                shown[key[0]] = kept
        for start in range(0, len(missing), CHUNK):
            shown |= await self._made(jobs, missing[start : start + CHUNK], query, show)
        return {job_id: shown[job_id] for job_id, _ in found.keys if job_id in shown}, found.total

    async def _made(self, jobs: TenantJobs, keys: Sequence[JobKey], query: JobQuery, show: Show) -> Mapping[str, bytes]:
        ends = dict(keys)
        made: dict[str, bytes] = {}
        for view in await jobs.views(tuple(ends), brief=query.brief):
            end = ends[view.job_id]
            if end is not None and view.ended_s is None:  # forgotten meanwhile, and its id reused
                continue
            made[view.job_id] = show(without_secrets(view))
            if end is not None:
                with contextlib.suppress(ValueError):  # it is larger than the cache
                    self._kept[show, (view.job_id, end)] = made[view.job_id]
        return made


def without_secrets(view: JobView) -> JobView:
    """Return a job without its credentials."""
    return replace(view, extra_data=without_credentials(view.extra_data))
