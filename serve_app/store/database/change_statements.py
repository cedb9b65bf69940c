"""Applies changes of jobs by SQL: one precompiled statement for all changes of a kind.

Changes are idempotent, since the answer to a COMMIT may be lost and the change applied again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import sqlalchemy as sa

from serve_app.errors import ChangeRefusedError
from serve_app.events import Failure
from serve_app.store.database import backoffs
from serve_app.store.database.changes import (
    Change,
    CountersReserved,
    JobAccepted,
    JobCached,
    JobEnded,
    JobLostReplica,
    JobStarted,
    OutputRecorded,
    OwnerCharged,
    TenantUsed,
)
from serve_app.store.database.execute import execute
from serve_app.store.database.idempotency_keys import KeyClaim, claim_keys
from serve_app.store.database.insert_once import Values, insert_once
from serve_app.store.database.reservation_statements import reserve
from serve_app.store.database.schema import JOBS, JSON_COLUMNS, LABELS, OUTPUTS, UNFINISHED
from serve_app.store.page.assets import AssetUse, use
from serve_app.store.tenants import usage
from serve_app.store.tenants.credentials import CREDENTIALS, without_credentials

T = TypeVar("T")

ACCEPTED_COLUMNS = ("job_id", "number", "order", "prompt", "targets", "client_id", "created_s", "queued_seq", "tenant")
"""What a job's row has from the start and keeps."""

VARIABLES = 500
"""How many values one statement may name; every database takes this many."""

_THE_JOB = JOBS.c.job_id == sa.bindparam("the_job")


def _update(*columns: str) -> sa.Update:
    return sa.update(JOBS).where(_THE_JOB).values({column: sa.bindparam(f"new_{column}") for column in columns})


_UPDATES = {
    kind: _update(*(field.name for field in fields(kind) if field.name != "job_id"))
    for kind in (JobStarted, JobCached, JobLostReplica, JobEnded)
}
"""The statements of changes whose fields are columns of their job."""
_CLEAR = _update("extra_data")
_HOLDING = sa.select(JOBS.c.job_id, JOBS.c.extra_data).where(
    UNFINISHED,
    sa.or_(*(JOBS.c.extra_data.contains(f'"{name}"', autoescape=True) for name in sorted(CREDENTIALS))),
)
"""Which unfinished jobs hold credentials."""


def apply(connection: sa.Connection, changes: Sequence[Change]) -> None:
    """Apply changes, kind by kind. Errors: ChangeRefusedError if a different row exists.

    This order of kinds is valid for each job, however changes of several jobs interleave.
    """
    accepted = _of(JobAccepted, changes)
    _insert(connection, JOBS, ACCEPTED_COLUMNS, [_row_of(change) for change in accepted])
    _claim(connection, accepted)
    _set(connection, JobStarted, changes)
    _set(connection, JobCached, changes)
    _set(connection, JobLostReplica, changes)
    reserve(connection, _of(CountersReserved, changes))
    outputs = [
        {"job_id": c.job_id, "node_id": c.node_id, "ui": json.dumps(c.ui), "seq": c.seq}
        for c in _of(OutputRecorded, changes)
    ]
    _insert(connection, OUTPUTS, tuple(OUTPUTS.c.keys()), outputs)
    _set(connection, JobEnded, changes)
    usage.write(connection, _of(TenantUsed, changes))
    backoffs.write(connection, _of(OwnerCharged, changes))


def _claim(connection: sa.Connection, accepted: Sequence[JobAccepted]) -> None:
    """Insert the claims and labels of new jobs; costs no statement without any."""
    labels = [
        {"key": key, "value": value, "order": change.row.order}
        for change in accepted
        for key, value in change.row.labels.items()
    ]
    insert_once(connection, LABELS, ("key", "value", "order"), labels)
    use(connection, [AssetUse(c.job_id, asset_id, c.row.tenant) for c in accepted for asset_id in c.claims.assets])
    keyed = [(change, key) for change in accepted if (key := change.claims.key) is not None]
    claim_keys(connection, [KeyClaim(c.job_id, key, c.row.created_s, c.row.tenant) for c, key in keyed])


def _of(kind: type[T], changes: Iterable[object]) -> list[T]:
    return [change for change in changes if isinstance(change, kind)]


def _set(connection: sa.Connection, kind: type[Any], changes: Iterable[object]) -> None:
    """Set the columns that changes of a kind have as fields."""
    columns = [field.name for field in fields(kind) if field.name != "job_id"]
    made = _of(kind, changes)
    execute(connection, _UPDATES[kind], [_new(c.job_id, **{name: getattr(c, name) for name in columns}) for c in made])


def _row_of(change: JobAccepted) -> Values:
    """Return a new job as its row, without credentials, which are never stored."""
    row = replace(change.row, extra_data=without_credentials(change.row.extra_data))
    return {column.name: _stored(column.name, getattr(row, column.name)) for column in JOBS.c}


def _new(job_id: str, **columns: Any) -> Values:
    return {"the_job": job_id, **{f"new_{column}": _stored(column, value) for column, value in columns.items()}}


def _stored(column: str, value: Any) -> Any:
    """Return a field of a job as its column stores it."""
    if column not in JSON_COLUMNS:
        return value
    return json.dumps(value.to_json() if isinstance(value, Failure) else value)


def _insert(connection: sa.Connection, table: sa.Table, same: Sequence[str], rows: list[Values]) -> None:
    """Insert rows unless they exist. Errors: ChangeRefusedError if an existing one differs in `same`."""
    if (refused := insert_once(connection, table, same, rows)) is not None:
        raise ChangeRefusedError(
            refused["job_id"], f"another row of {table.name} has the place of what the job is to record"
        )


def clear_credentials(connection: sa.Connection) -> None:
    """Remove credentials that earlier releases stored with jobs."""
    found = connection.execute(_HOLDING).all()
    cleared = [(row.job_id, without_credentials(json.loads(row.extra_data))) for row in found]
    execute(connection, _CLEAR, [_new(job_id, extra_data=left) for job_id, left in cleared])
