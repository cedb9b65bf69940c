"""The job database: one row a job, one a recorded output, and the lease that says who may write.

SQLAlchemy Core over SQLite or PostgreSQL. Every write belongs to an epoch and happens only while that epoch holds the
lease, so of two schedulers alive at once only the newer one can change anything (a fencing token, Kleppmann 2016).
Synchronous; one thread at a time writes, others may read.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from serve_app.errors import StaleEpochError
from serve_app.store.changes import Change, JobAccepted, JobEnded, JobQuery, JobRow, JobStarted, OutputRecorded

VARIABLES = 500
"""How many values one statement may name; every database takes this many."""

_metadata = sa.MetaData()

_lease = sa.Table(
    "lease",
    _metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("holder", sa.String(255), nullable=False),
    sa.Column("started_s", sa.Float, nullable=False),
)
_jobs = sa.Table(
    "jobs",
    _metadata,
    sa.Column("job_id", sa.String(64), primary_key=True),
    sa.Column("number", sa.Float, nullable=False),
    sa.Column("order", sa.BigInteger, nullable=False, unique=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("client_id", sa.Text),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("targets", sa.Text, nullable=False),
    sa.Column("extra_data", sa.Text, nullable=False),
    sa.Column("created_s", sa.Float, nullable=False),
    sa.Column("started_s", sa.Float),
    sa.Column("ended_s", sa.Float),
    sa.Column("failure", sa.Text, nullable=False),
    sa.Column("queued_seq", sa.BigInteger, nullable=False),
    sa.Column("started_seq", sa.BigInteger),
    sa.Column("ended_seq", sa.BigInteger),
)
sa.Index(
    "jobs_unfinished", _jobs.c.order, sqlite_where=_jobs.c.ended_s.is_(None), postgresql_where=_jobs.c.ended_s.is_(None)
)
# Lists are read in these orders without touching the rows' long texts.
sa.Index("jobs_by_end", _jobs.c.ended_seq)
sa.Index("jobs_by_creation", _jobs.c.created_s, _jobs.c.order)
_outputs = sa.Table(
    "outputs",
    _metadata,
    sa.Column("job_id", sa.String(64), primary_key=True),
    sa.Column("node_id", sa.String(255), primary_key=True),
    sa.Column("ui", sa.Text, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
)
_counters = sa.Table(
    "counters",
    _metadata,
    sa.Column("key", sa.String(767), primary_key=True),
    sa.Column("following", sa.BigInteger, nullable=False),
)
_reservations = sa.Table(
    "reservations",
    _metadata,
    sa.Column("job_id", sa.String(64), primary_key=True),
    sa.Column("node_id", sa.String(255), primary_key=True),
    sa.Column("key", sa.String(767), primary_key=True),
    sa.Column("first", sa.BigInteger, nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
)
_pool_specs = sa.Table(
    "pool_specs",
    _metadata,
    sa.Column("pool", sa.String(64), primary_key=True),
    sa.Column("specs", sa.Text, nullable=False),
)


class Jobs:
    """The database by URL, e.g. `sqlite:///state/jobs.sqlite`. Creates its tables."""

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url)
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _durable_sqlite)
        _metadata.create_all(self._engine)

    def close(self) -> None:
        """Let go of every connection."""
        self._engine.dispose()

    # The lease ----------------------------------------------------------------------------------------------------

    def acquire(self, holder: str) -> int:
        """Take the lease, whoever had it, and return the new epoch. The newest scheduler always wins.

        holder: the server this scheduler belongs to; the same one again, as after a crash, has not started anew.
        """
        with self._engine.begin() as connection:
            earlier = connection.execute(sa.select(_lease).with_for_update()).first()
            started_s = earlier.started_s if earlier is not None and earlier.holder == holder else time.time()
            if earlier is None:
                lease = {"name": "scheduler", "epoch": 1, "holder": holder, "started_s": started_s}
                connection.execute(sa.insert(_lease).values(lease))
            else:
                taken = {"epoch": _lease.c.epoch + 1, "holder": holder, "started_s": started_s}
                connection.execute(sa.update(_lease).values(taken))
            return int(connection.execute(sa.select(_lease.c.epoch)).scalar_one())

    def started_s(self) -> float:
        """Return the Unix time at which the server that holds the lease started."""
        with self._engine.connect() as connection:
            return float(connection.execute(sa.select(_lease.c.started_s)).scalar_one())

    def _fence(self, connection: sa.Connection, epoch: int) -> None:
        """Lock the lease row for this transaction. Errors: StaleEpochError when another epoch holds it."""
        held = connection.execute(sa.update(_lease).where(_lease.c.epoch == epoch).values(epoch=epoch))
        if held.rowcount == 0:
            raise StaleEpochError(f"epoch {epoch} no longer holds the scheduler's lease; a newer scheduler does")

    # Writing ------------------------------------------------------------------------------------------------------

    def write(self, epoch: int, changes: Sequence[Change]) -> None:
        """Apply the changes in order, all or none. Errors: StaleEpochError."""
        with self._engine.begin() as connection:
            self._fence(connection, epoch)
            for change in changes:
                connection.execute(_statement(change))

    def reserve(self, epoch: int, job_id: str, node_id: str, key: str, at_least: int, count: int) -> int:
        """Return the first of `count` counters for `key`; the same (job, node, key) gets the same ones again."""
        where = (_reservations.c.job_id == job_id) & (_reservations.c.node_id == node_id) & (_reservations.c.key == key)
        with self._engine.begin() as connection:
            self._fence(connection, epoch)
            earlier = connection.execute(sa.select(_reservations.c.first, _reservations.c.amount).where(where)).first()
            if earlier is not None and earlier.amount == count:
                return int(earlier.first)
            following = connection.execute(sa.select(_counters.c.following).where(_counters.c.key == key)).scalar()
            first = max(at_least, following or 0)
            if following is None:
                connection.execute(sa.insert(_counters).values(key=key, following=first + count))
            else:
                connection.execute(sa.update(_counters).where(_counters.c.key == key).values(following=first + count))
            connection.execute(sa.delete(_reservations).where(where))
            connection.execute(
                sa.insert(_reservations).values(job_id=job_id, node_id=node_id, key=key, first=first, amount=count)
            )
            return first

    def save_specs(self, epoch: int, pool: str, specs: Sequence[Mapping[str, Any]]) -> None:
        """Remember what a pool can run, so that jobs can be planned while it has no replica."""
        with self._engine.begin() as connection:
            self._fence(connection, epoch)
            connection.execute(sa.delete(_pool_specs).where(_pool_specs.c.pool == pool))
            connection.execute(sa.insert(_pool_specs).values(pool=pool, specs=json.dumps(list(specs))))

    def forget(self, epoch: int, job_ids: Sequence[str] | None) -> None:
        """Delete ended jobs, these or all, with their outputs."""
        with self._engine.begin() as connection:
            self._fence(connection, epoch)
            ended: sa.ColumnElement[bool] = _jobs.c.ended_s.is_not(None)
            if job_ids is not None:
                ended &= _jobs.c.job_id.in_(job_ids)
            gone = sa.select(_jobs.c.job_id).where(ended)
            for table in (_outputs, _reservations):
                connection.execute(sa.delete(table).where(table.c.job_id.in_(gone)))
            connection.execute(sa.delete(_jobs).where(ended))

    # Reading ------------------------------------------------------------------------------------------------------

    def specs(self) -> dict[str, list[dict[str, Any]]]:
        """Return what `save_specs` remembered, by pool."""
        with self._engine.connect() as connection:
            return {row.pool: json.loads(row.specs) for row in connection.execute(sa.select(_pool_specs))}

    def job(self, job_id: str) -> JobRow | None:
        """Return a job with its outputs, or None."""
        return next(iter(self._rows(_jobs.c.job_id == job_id)), None)

    def unfinished(self) -> list[JobRow]:
        """Return every job that has not ended, in submission order."""
        return self._rows(_jobs.c.ended_s.is_(None))

    def page(self, query: JobQuery) -> tuple[list[JobRow], int]:
        """Return the jobs a query finds, in its order, and how many there are without its window."""
        where = _jobs.c.state.in_(query.states) & ((_jobs.c.state != "cancelled") | _jobs.c.started_s.is_not(None))
        if query.workflow_id is not None:
            # The id of a saved workflow is a UUID inside extra_data, so its text is found nowhere else by accident.
            where &= _jobs.c.extra_data.contains(f'"id": {json.dumps(query.workflow_id)}', autoescape=True)
        key: sa.ColumnElement[Any] = {
            "created": _jobs.c.created_s,
            "ended": _jobs.c.ended_seq,
            "duration": sa.func.coalesce(_jobs.c.ended_s - _jobs.c.started_s, 0.0),
        }[query.sort]
        order = [column.desc() if query.descending else column.asc() for column in (key, _jobs.c.order)]
        window = sa.select(_jobs.c.job_id).where(where).order_by(*order).offset(query.offset).limit(query.limit)
        with self._engine.connect() as connection:
            total = connection.execute(sa.select(sa.func.count()).select_from(_jobs).where(where)).scalar_one()
            ids = list(connection.execute(window).scalars())
        found: dict[str, JobRow] = {}
        for start in range(0, len(ids), VARIABLES):
            rows = self._rows(_jobs.c.job_id.in_(ids[start : start + VARIABLES]))
            found.update((row.job_id, row) for row in rows)
        return [found[job_id] for job_id in ids if job_id in found], int(total)

    def next_order(self) -> int:
        """Return one more than the highest submission order so far."""
        with self._engine.connect() as connection:
            highest = connection.execute(sa.select(sa.func.max(_jobs.c.order))).scalar()
            return 0 if highest is None else int(highest) + 1

    def _rows(self, where: sa.ColumnElement[bool]) -> list[JobRow]:
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(_jobs).where(where).order_by(_jobs.c.order)).all()
            found = sa.select(_outputs).join(_jobs, _jobs.c.job_id == _outputs.c.job_id).where(where)
            outputs: dict[str, dict[str, tuple[int, Any]]] = {}
            for output in connection.execute(found.order_by(_outputs.c.seq)):
                outputs.setdefault(output.job_id, {})[output.node_id] = (output.seq, json.loads(output.ui))
        return [_row(dict(row._mapping), outputs.get(row.job_id, {})) for row in rows]


def _durable_sqlite(connection: Any, _record: object) -> None:
    """WAL lets readers go on beside the writer; FULL keeps a committed job through a power cut."""
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000"):
        connection.execute(f"PRAGMA {pragma}")


def _statement(change: Change) -> sa.Executable:
    match change:
        case JobAccepted(row):
            values = asdict(row)
            del values["outputs"]
            for column in ("prompt", "targets", "extra_data", "failure"):
                values[column] = json.dumps(values[column])
            return sa.insert(_jobs).values(values)
        case JobStarted(job_id, at_s, seq):
            started = {"state": "running", "started_s": at_s, "started_seq": seq}
            return sa.update(_jobs).where(_jobs.c.job_id == job_id).values(started)
        case OutputRecorded(job_id, node_id, ui, seq):
            return sa.insert(_outputs).values(job_id=job_id, node_id=node_id, ui=json.dumps(ui), seq=seq)
        case JobEnded(job_id, state, at_s, seq, failure):
            ended = {"state": state, "ended_s": at_s, "ended_seq": seq, "failure": json.dumps(failure)}
            return sa.update(_jobs).where(_jobs.c.job_id == job_id).values(ended)


def _row(columns: Mapping[str, Any], outputs: Mapping[str, tuple[int, Any]]) -> JobRow:
    values: dict[str, Any] = dict(columns)
    for column in ("prompt", "targets", "extra_data", "failure"):
        values[column] = json.loads(values[column])
    return JobRow(**{**values, "targets": tuple(values["targets"]), "outputs": outputs})
