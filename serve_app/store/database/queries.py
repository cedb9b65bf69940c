"""Database queries of the ingress, as data that the scheduler executes, since only its process has the database.

A query that writes does so under the scheduler's lease. It must be idempotent: it is executed again if its answer was
lost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, TypeVar

import sqlalchemy as sa

from serve_app.events import JobState
from serve_app.store.database.list_statements import of_tenant
from serve_app.store.database.query_scope import TenantScoped
from serve_app.store.database.schema import JOBS, LABELS
from serve_app.store.tenants.tenants import prompt_id_of

T_co = TypeVar("T_co", covariant=True)


class Query(Protocol[T_co]):
    """A query or change. writes: whether it changes something. Its base class in `query_scope.py` is who may run it."""

    writes: ClassVar[bool]

    def execute(self, connection: sa.Connection) -> T_co:
        """Return the result, within one transaction."""
        ...


@dataclass(frozen=True, slots=True)
class ListedJob:
    """A job in a list. order: its position in the order of submission. Times are Unix seconds."""

    job_id: str
    order: int
    state: JobState
    created_s: float
    started_s: float | None
    ended_s: float | None
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ListJobs(TenantScoped):
    """Lists the newest jobs, with those that were cancelled before they started: `limit` ones submitted before
    `before`.

    labels: that they all have. tenant: the caller, "" for the operator, who sees all.
    """

    writes: ClassVar[bool] = False

    limit: int
    before: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    tenant: str = ""

    def execute(self, connection: sa.Connection) -> tuple[ListedJob, ...]:
        """Return the jobs, the newest first."""
        columns = (JOBS.c.job_id, JOBS.c.order, JOBS.c.state, JOBS.c.created_s, JOBS.c.started_s, JOBS.c.ended_s)
        listed = sa.select(*columns, JOBS.c.labels).order_by(JOBS.c.order.desc()).limit(self.limit)
        if self.tenant:
            listed = listed.where(of_tenant(self.tenant))
        if self.before is not None:
            listed = listed.where(JOBS.c.order < self.before)
        for key, value in self.labels.items():
            having = sa.select(LABELS.c.order).where((LABELS.c.key == key) & (LABELS.c.value == value))
            listed = listed.where(JOBS.c.order.in_(having))
        rows = connection.execute(listed).all()
        named = prompt_id_of if self.tenant else str
        return tuple(ListedJob(named(row.job_id), *row[1:-1], labels=json.loads(row.labels)) for row in rows)
