"""Lists of jobs as SQL: which jobs a list holds, in its order; each statement's text is made once."""

from __future__ import annotations

import functools
from typing import Any

import sqlalchemy as sa

from serve_app.store.schema import JOBS, TENANTS

LISTED = (JOBS.c.state != "cancelled") | JOBS.c.started_s.is_not(None)
"""A job that was cancelled before it started is in no list."""

ENDS = sa.select(JOBS.c.job_id, JOBS.c.ended_seq).where(JOBS.c.job_id.in_(sa.bindparam("them", expanding=True)))
"""The cursors of some jobs' ends. Parameter: them."""


@functools.cache
def counting(by_workflow: bool, by_tenant: bool) -> sa.Select[int]:
    """Return what counts a list's jobs.

    Parameters: states; with by_workflow also saved, made by `containing`; with by_tenant also owner.
    """
    return sa.select(sa.func.count()).select_from(JOBS).where(_found(by_workflow, by_tenant))


@functools.cache
def window_of(sort: str, descending: bool, by_workflow: bool, by_tenant: bool) -> sa.Select[str]:
    """Return what reads a stretch of a list, as ids. Parameters: those of `counting`; skipped, most."""
    key: sa.ColumnElement[Any] = {
        "created": JOBS.c.created_s,
        "ended": JOBS.c.ended_seq,
        "duration": sa.func.coalesce(JOBS.c.ended_s - JOBS.c.started_s, 0.0),
    }[sort]
    # Left to themselves, the databases differ in where jobs without an end go.
    order = [key.desc().nulls_last(), JOBS.c.order.desc()]
    if not descending:
        order = [key.asc().nulls_first(), JOBS.c.order.asc()]
    window = sa.select(JOBS.c.job_id).where(_found(by_workflow, by_tenant)).order_by(*order)
    return window.offset(sa.bindparam("skipped")).limit(sa.bindparam("most"))


def of_tenant(tenant: str | sa.BindParameter[Any]) -> sa.ColumnElement[bool]:
    """Return that a job is a tenant's, said so that the indexes of tenants' jobs serve."""
    return (JOBS.c.tenant == tenant) & TENANTS


def containing(text: str) -> str:
    """Return the pattern of what contains a text."""
    for special in "/%_":
        text = text.replace(special, f"/{special}")
    return f"%{text}%"


def _found(by_workflow: bool, by_tenant: bool) -> sa.ColumnElement[bool]:
    found = JOBS.c.state.in_(sa.bindparam("states", expanding=True)) & LISTED
    if by_tenant:
        found &= of_tenant(sa.bindparam("owner"))
    return found & JOBS.c.extra_data.like(sa.bindparam("saved"), escape="/") if by_workflow else found
