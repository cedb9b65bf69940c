"""The job database: one row a job, one a recorded output, and the lease that says who may write.

SQLAlchemy Core over SQLite or PostgreSQL; the tables are in `schema.py`. Every write belongs to an epoch and happens
only while that epoch holds the lease, so of two schedulers alive at once only the newer one can change anything (a
fencing token, Kleppmann 2016). Synchronous; one thread at a time writes, others may read.

Errors: DatabaseAwayError if it does not answer or refuses for reasons of its own: retry. ChangeRefusedError if it will
never accept a change.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeVar

import sqlalchemy as sa

from serve_app import log
from serve_app.errors import (
    ChangeRefusedError,
    FileMissingError,
    StaleEpochError,
)
from serve_app.events import Failure
from serve_app.store.database import backoffs, costs, webhooks
from serve_app.store.database.change_statements import VARIABLES, apply, clear_credentials
from serve_app.store.database.changes import Change, JobKey, JobQuery, JobRow, ListCount, OwnerCharged, TenantUsed
from serve_app.store.database.costs import Cost
from serve_app.store.database.database import Database, is_permanent, reason, unlimited_statements
from serve_app.store.database.execute import execute
from serve_app.store.database.list_statements import ENDLESS, containing, counting, counting_ends, window_of
from serve_app.store.database.queries import Query
from serve_app.store.database.reservation_statements import let_go, reservation_of
from serve_app.store.database.schema import (
    JOBS,
    JSON_COLUMNS,
    LEASE,
    OUTPUTS,
    POOL_SPECS,
    RESERVATIONS,
    UNFINISHED,
)
from serve_app.store.database.webhooks import Webhook
from serve_app.store.files.reserved import Reservation, shown
from serve_app.store.files.store import FileRef
from serve_app.store.retention.removal import delete_jobs
from serve_app.store.tenants import usage
from serve_app.store.tenants.tenants import placed

T = TypeVar("T")
_log = log.get("store")

# What every job needs is made once: SQLAlchemy takes longer to make a statement than to carry it out.
_HOLD_LEASE = sa.update(LEASE).where(LEASE.c.epoch == sa.bindparam("held")).values(epoch=sa.bindparam("held"))
_ONE_JOB = sa.select(JOBS).where(JOBS.c.job_id == sa.bindparam("the_job"))
_SHOWN = sa.select(JOBS.c.tenant, OUTPUTS.c.ui).join(JOBS, JOBS.c.job_id == OUTPUTS.c.job_id)
_ITS_OUTPUTS = sa.select(OUTPUTS).where(OUTPUTS.c.job_id == sa.bindparam("the_job")).order_by(OUTPUTS.c.seq)


class Jobs(Database):
    """The statements of jobs and of the lease over an open database."""

    _webhooks: tuple[Webhook, ...] | None = None
    """As they are while this process holds the lease, whose holder alone changes them; None is not known."""

    # The lease ----------------------------------------------------------------------------------------------------

    def acquire(self, holder: str) -> int:
        """Take the lease from any holder and return the new epoch. The newest scheduler always wins.

        holder: the scheduler's server; started_s stays if it is the same one, as after a crash of the scheduler.
        """
        with self._transaction() as connection:
            earlier = connection.execute(sa.select(LEASE).with_for_update()).one()
            started_s = earlier.started_s if earlier.holder == holder else time.time()
            taken = {"epoch": earlier.epoch + 1, "holder": holder, "started_s": started_s}
            connection.execute(sa.update(LEASE).values(taken))
            clear_credentials(connection)
            self._webhooks = None
            return int(earlier.epoch) + 1

    def started_s(self) -> float:
        """Return the Unix time at which the server that holds the lease started."""
        with self.reading() as connection:
            return float(connection.execute(sa.select(LEASE.c.started_s)).scalar_one())

    def renew(self, epoch: int) -> None:
        """Renew the lease of an epoch. Errors: StaleEpochError if another epoch holds it."""
        with self._transaction() as connection:
            held = connection.execute(sa.update(LEASE).where(LEASE.c.epoch == epoch).values(beat=LEASE.c.beat + 1))
            if held.rowcount == 0:
                raise _stale(epoch)

    def heartbeat(self) -> tuple[int, int]:
        """Return the epoch that holds the lease, and the number of renewals."""
        with self.reading() as connection:
            held = connection.execute(sa.select(LEASE.c.epoch, LEASE.c.beat)).one()
            return int(held.epoch), int(held.beat)

    def vacant(self) -> bool:
        """Whether nobody holds the lease: its holder was deposed, and no scheduler has taken it since."""
        with self.reading() as connection:
            return str(connection.execute(sa.select(LEASE.c.holder)).scalar_one()) == ""

    def depose(self, connection: sa.Connection, above: int = 0) -> int:
        """Take the lease from any holder, for nobody; return the epoch, higher than `above` and than all before.

        Its scheduler notices at its next write, takes the lease again and begins anew from the database. Within
        `replacing`.
        """
        earlier = int(connection.execute(sa.select(LEASE.c.epoch)).scalar_one())
        epoch = max(earlier, above) + 1
        connection.execute(sa.update(LEASE).values(epoch=epoch, holder=""))
        return epoch

    def _fence(self, connection: sa.Connection, epoch: int) -> None:
        """Lock the lease row for this transaction. Errors: StaleEpochError when another epoch holds it."""
        if execute(connection, _HOLD_LEASE, [{"held": epoch}]) == 0:
            raise _stale(epoch)

    # Writing ------------------------------------------------------------------------------------------------------

    def write(self, epoch: int, changes: Sequence[Change]) -> bool:
        """Apply the changes in order, all or none; return whether that queued webhook deliveries.

        Errors: StaleEpochError; ChangeRefusedError naming the first job.
        """
        try:
            return self._apply(epoch, [changes])
        except ChangeRefusedError:
            # Which of them will never be taken shows once each is a statement of its own.
            return self._apply(epoch, [[change] for change in changes])

    def _apply(self, epoch: int, batches: Sequence[Sequence[Change]]) -> bool:
        with self._transaction(changes=sum(map(len, batches))) as connection:
            self._fence(connection, epoch)
            for batch in batches:
                with _refusing(batch[0].job_id):
                    apply(connection, batch)
            if self._webhooks is None:
                self._webhooks = webhooks.known(connection)
            return webhooks.enclose(connection, self._webhooks, chain.from_iterable(batches))

    def settle(self, epoch: int, reservations: Sequence[Reservation]) -> None:
        """Delete reservations whose files are recorded or deleted."""
        with self._transaction() as connection:
            self._fence(connection, epoch)
            let_go(connection, reservations)

    def save_specs(
        self, epoch: int, pool: str, specs: Sequence[Mapping[str, Any]], routes: Sequence[Mapping[str, str]]
    ) -> None:
        """Store the node classes and routes of a pool, for times when it has no replica."""
        with self._transaction() as connection:
            self._fence(connection, epoch)
            connection.execute(sa.delete(POOL_SPECS).where(POOL_SPECS.c.pool == pool))
            connection.execute(
                sa.insert(POOL_SPECS).values(pool=pool, specs=json.dumps(list(specs)), routes=json.dumps(list(routes)))
            )

    def save_costs(self, epoch: int, learned: Sequence[Cost]) -> None:
        """Store costs, replacing earlier ones."""
        with self._transaction() as connection:
            self._fence(connection, epoch)
            costs.write(connection, learned)

    def forget(self, epoch: int, job_ids: Sequence[str] | None, tenant: str = "") -> None:
        """Delete ended jobs, these or all, with their outputs. tenant: only its jobs, "" for all."""
        with self._transaction() as connection:
            self._fence(connection, epoch)
            ended: sa.ColumnElement[bool] = JOBS.c.ended_s.is_not(None)
            if job_ids is not None:
                ended &= JOBS.c.job_id.in_(job_ids)
            if tenant:
                ended &= JOBS.c.tenant == tenant
            delete_jobs(connection, ended)

    def query(self, epoch: int, query: Query[T]) -> T:
        """Execute a query; one that writes does so under the epoch's lease."""
        if not query.writes:
            with self.reading() as connection:
                return query.execute(connection)
        self._webhooks = None
        with self._transaction() as connection:
            self._fence(connection, epoch)
            return query.execute(connection)

    @contextlib.contextmanager
    def replacing(self) -> Iterator[sa.Connection]:
        """Open a transaction that may change everything without holding the lease."""
        with self._transaction() as connection, unlimited_statements(connection):
            # Whoever works on the database waits for this, and then finds that it has lost the lease.
            connection.execute(sa.update(LEASE).values(beat=LEASE.c.beat + 1))
            yield connection

    # Reading ------------------------------------------------------------------------------------------------------

    def specs(self) -> dict[str, list[dict[str, Any]]]:
        """Return the stored node classes, by pool."""
        with self.reading() as connection:
            return {row.pool: json.loads(row.specs) for row in connection.execute(sa.select(POOL_SPECS))}

    def routes(self) -> dict[str, list[dict[str, str]]]:
        """Return the stored routes, by pool."""
        with self.reading() as connection:
            return {row.pool: json.loads(row.routes) for row in connection.execute(sa.select(POOL_SPECS))}

    def costs(self) -> list[Cost]:
        """Return the stored costs."""
        with self.reading() as connection:
            return costs.read(connection)

    def backoffs(self) -> list[OwnerCharged]:
        """Return the stored losses of owners."""
        with self.reading() as connection:
            return backoffs.read(connection)

    def usage(self, since_day: int) -> list[TenantUsed]:
        """Return the GPU time of tenants from a day on. day: its number since 1970, in UTC."""
        with self.reading() as connection:
            return usage.read(connection, since_day)

    def job(self, job_id: str) -> JobRow | None:
        """Return a job with its outputs, or None."""
        with self.reading() as connection:
            if (row := connection.execute(_ONE_JOB, {"the_job": job_id}).first()) is None:
                return None
            outputs = connection.execute(_ITS_OUTPUTS, {"the_job": job_id})
            return _row(row, list(outputs))

    def unfinished(self) -> list[JobRow]:
        """Return every job that has not ended, in submission order."""
        return self._rows(UNFINISHED)

    def ended_counts(self, until_seq: int) -> list[ListCount]:
        """Return the counts of listed jobs that ended up to a cursor."""
        with self.reading() as connection:
            return [ListCount(*row) for row in connection.execute(counting_ends(), {"until": until_seq})]

    def page(self, query: JobQuery) -> tuple[list[JobRow], int]:
        """Return the jobs that a query finds, in its order, and their number without its window."""
        return self.rows([job_id for job_id, _ in self.keys(query)], brief=query.brief), self.count(query)

    def count(self, query: JobQuery) -> int:
        """Return the number of jobs that a query finds without its window. Scans all of them."""
        by, asked = _asked(query)
        with self.reading() as connection:
            return int(connection.execute(counting(*by), asked).scalar_one())

    def keys(self, query: JobQuery) -> list[JobKey]:
        """Return the keys of the jobs that a query finds, in its order. Scans those that its offset skips."""
        by, asked = _asked(query)
        start = query.start if query.start is not None else ENDLESS if query.descending else 0
        most = ENDLESS if query.limit is None else query.limit
        window = window_of(query.sort, query.descending, *by)
        with self.reading() as connection:
            found = connection.execute(window, {**asked, "start": start, "skipped": query.offset, "most": most})
            return [(row.job_id, row.ended_seq) for row in found]

    def rows(self, job_ids: Sequence[str], *, brief: bool = False) -> list[JobRow]:
        """Return jobs with their outputs, in the order of the ids; unknown ones are left out. brief: see JobQuery."""
        found: dict[str, JobRow] = {}
        for start in range(0, len(job_ids), VARIABLES):
            rows = self._rows(JOBS.c.job_id.in_(job_ids[start : start + VARIABLES]), brief=brief)
            found.update((row.job_id, row) for row in rows)
        return [found[job_id] for job_id in job_ids if job_id in found]

    def unsettled(self, ended_before_s: float, limit: int | None) -> list[Reservation]:
        """Return reservations of jobs that ended before a time, whose files may not all be recorded."""
        ended = sa.select(RESERVATIONS).join(JOBS, JOBS.c.job_id == RESERVATIONS.c.job_id)
        ended = ended.where(JOBS.c.ended_s < ended_before_s).limit(limit)
        with self.reading() as connection:
            return [reservation_of(row) for row in connection.execute(ended)]

    def shown(self, job_ids: Sequence[str]) -> set[FileRef]:
        """Return the stored files that these jobs' recorded outputs name."""
        files: set[FileRef] = set()
        with self.reading() as connection:
            for start in range(0, len(job_ids), VARIABLES):
                theirs = OUTPUTS.c.job_id.in_(job_ids[start : start + VARIABLES])
                for tenant, ui in connection.execute(_SHOWN.where(theirs)):
                    files.update(_placed(ui, tenant))
        return files

    def outputs_of_unfinished(self) -> set[FileRef]:
        """Return the files that the recorded outputs of unfinished jobs name, by tenants' names."""
        with self.reading() as connection:
            outputs = connection.execute(_SHOWN.where(UNFINISHED))
            return {ref for _, ui in outputs for ref in shown(json.loads(ui))}

    def is_output(self, ref: FileRef) -> bool:
        """Whether any job's recorded outputs name the file."""
        likely = OUTPUTS.c.ui.contains(json.dumps(ref.filename), autoescape=True)
        with self.reading() as connection:
            return any(ref in _placed(ui, tenant) for tenant, ui in connection.execute(_SHOWN.where(likely)))

    def next_order(self) -> int:
        """Return one more than the highest submission order so far."""
        with self.reading() as connection:
            highest = connection.execute(sa.select(sa.func.max(JOBS.c.order))).scalar()
            return 0 if highest is None else int(highest) + 1

    def _rows(self, where: sa.ColumnElement[bool], *, brief: bool = False) -> list[JobRow]:
        columns = [sa.literal("{}").label("prompt") if brief and c is JOBS.c.prompt else c for c in JOBS.c]
        with self.reading() as connection:
            rows = connection.execute(sa.select(*columns).where(where).order_by(JOBS.c.order)).all()
            outputs: dict[str, list[Any]] = {}
            for start in range(0, len(rows), VARIABLES):
                theirs = OUTPUTS.c.job_id.in_([row.job_id for row in rows[start : start + VARIABLES]])
                for output in connection.execute(sa.select(OUTPUTS).where(theirs).order_by(OUTPUTS.c.seq)):
                    outputs.setdefault(output.job_id, []).append(output)
        return [_row(row, outputs.get(row.job_id, ())) for row in rows]


@contextlib.contextmanager
def _refusing(job_id: str) -> Iterator[None]:
    """Turn a permanent refusal of a statement into ChangeRefusedError for its job."""
    try:
        yield
    except Exception as error:
        if is_permanent(error):
            raise ChangeRefusedError(
                job_id, f"the database refuses what the job is to record: {reason(error)}"
            ) from error
        raise


def _asked(query: JobQuery) -> tuple[tuple[bool, bool], dict[str, Any]]:
    """Return whether a query filters by workflow and by tenant, and its parameters."""
    asked: dict[str, Any] = {"states": sorted(query.states)}
    if query.workflow_id is not None:
        # The id of a saved workflow is a UUID inside extra_data, so its text is found nowhere else by accident.
        asked["saved"] = containing(f'"id": {json.dumps(query.workflow_id)}')
    if query.tenant:
        asked["owner"] = query.tenant
    return ("saved" in asked, "owner" in asked), asked


def _stale(epoch: int) -> StaleEpochError:
    return StaleEpochError(f"epoch {epoch} no longer holds the scheduler's lease; a newer scheduler does")


def _placed(ui: str, tenant: str) -> set[FileRef]:
    """Return the stored paths of the files that a ui dict of a tenant's job names."""
    found = set()
    for ref in shown(json.loads(ui)):
        with contextlib.suppress(FileMissingError):
            found.add(placed(ref, tenant))
    return found


def _row(row: Any, outputs: Sequence[Any]) -> JobRow:
    """Return a job of its row and those of its outputs, in their order."""
    values: dict[str, Any] = dict(row._mapping)
    for column in JSON_COLUMNS:
        value = json.loads(values[column])
        values[column] = tuple(value) if isinstance(value, list) else value
    values["failure"] = Failure.from_json(values["failure"])
    shown = {output.node_id: json.loads(output.ui) for output in outputs}
    return JobRow(**values, outputs=shown, output_seqs=tuple(output.seq for output in outputs))
