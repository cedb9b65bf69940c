"""A page of a list of jobs, as an ingress that has shown none of them before asks for it."""

from __future__ import annotations

from typing import NamedTuple

from serve_app.scheduler.protocol.client import JobView
from serve_app.scheduler.scheduler import Scheduler
from serve_app.store.database.changes import JobQuery


class JobPage(NamedTuple):
    """Jobs that a query finds, and how many it finds without its window."""

    jobs: tuple[JobView, ...]
    total: int


async def page(scheduler: Scheduler, query: JobQuery) -> JobPage:
    """Return the jobs that a query finds."""
    found = await scheduler.keys(query)
    return JobPage(await scheduler.views([job_id for job_id, _ in found.keys], query.brief), found.total)
