"""SQL of the lists of jobs: their contents, order and counts; each statement is compiled once."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from serve_app.store.database.changes import Sort
from serve_app.store.database.schema import JOBS, TENANTS

LISTED = (JOBS.c.state != "cancelled") | JOBS.c.started_s.is_not(None)
"""A job that was cancelled before it started is in no list."""

PLACES: Mapping[Sort, sa.Column[Any]] = {"created": JOBS.c.order, "ended": JOBS.c.ended_seq}
"""By what jobs have their place in a list, where that is a number that grows from job to job."""

STRETCH_BITS: Mapping[Sort, int] = {"created": 10, "ended": 13}
"""How many places one stretch of a list has, as a power of two; a job takes some ten cursors."""

ENDLESS = 2**62


@functools.cache
def counting(by_workflow: bool, by_tenant: bool) -> sa.Select[int]:
    """Return the statement that counts a list's jobs.

    Parameters: states; with by_workflow also saved, made by `containing`; with by_tenant also owner.
    """
    return sa.select(sa.func.count()).select_from(JOBS).where(_found(by_workflow, by_tenant))


@functools.cache
def window_of(sort: Sort, descending: bool, by_workflow: bool, by_tenant: bool) -> sa.Select[Any]:
    """Return the statement that reads a page of a list, as keys of jobs.

    Parameters: those of `counting`; skipped, most; where jobs have places also start, the first of them.
    """
    found = _found(by_workflow, by_tenant)
    order: list[sa.ColumnElement[Any]] = [sa.func.coalesce(JOBS.c.ended_s - JOBS.c.started_s, 0.0), JOBS.c.order]
    if (place := PLACES.get(sort)) is not None:
        order = [place] if place is JOBS.c.order else [place, JOBS.c.order]
        found &= place <= sa.bindparam("start") if descending else place >= sa.bindparam("start")
    window = sa.select(JOBS.c.job_id, JOBS.c.ended_seq).where(found)
    window = window.order_by(*(column.desc() if descending else column.asc() for column in order))
    return window.offset(sa.bindparam("skipped")).limit(sa.bindparam("most"))


def counting_ends() -> sa.Select[Any]:
    """Return the statement that counts ended jobs by tenant, state, and stretch of both lists.

    Parameter: until, the cursor of the last end.
    """
    stretches = (PLACES[sort].bitwise_rshift(sa.literal(bits, sa.Integer)) for sort, bits in STRETCH_BITS.items())
    groups = (JOBS.c.tenant, JOBS.c.state, *stretches)
    listed = (JOBS.c.ended_seq <= sa.bindparam("until")) & LISTED
    return sa.select(*groups, sa.func.count()).where(listed).group_by(*groups)


def of_tenant(tenant: str | sa.BindParameter[Any]) -> sa.ColumnElement[bool]:
    """Return the condition that a job is a tenant's, in a form that the tenants' indexes serve."""
    return (JOBS.c.tenant == tenant) & TENANTS


def containing(text: str) -> str:
    """Return the LIKE pattern for a contained text."""
    for special in "/%_":
        text = text.replace(special, f"/{special}")
    return f"%{text}%"


def _found(by_workflow: bool, by_tenant: bool) -> sa.ColumnElement[bool]:
    found = JOBS.c.state.in_(sa.bindparam("states", expanding=True)) & LISTED
    if by_tenant:
        found &= of_tenant(sa.bindparam("owner"))
    return found & JOBS.c.extra_data.like(sa.bindparam("saved"), escape="/") if by_workflow else found
