"""The database's tables, and bringing an older database up to them.

A new database is made from the tables here, an older one by the revisions of `migrations`, one after another; both are
then equal, which a test checks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from serve_app.errors import ConfigError
from serve_app.store.files.reserved import LONGEST_KEY
from serve_app.store.tenants.tenants import JOB_ID_LENGTH

METADATA = sa.MetaData()
JOB_ID = sa.String(JOB_ID_LENGTH).with_variant(sa.String(64), "sqlite")
"""A job's id, as `tenants.job_id_of` makes it. SQLite takes texts of any length, and changes no column's type."""
JSON = {"json": True}
"""The info of a column whose text is JSON."""

REVISIONS = sa.Table("alembic_version", METADATA, sa.Column("version_num", sa.String(32), primary_key=True))
"""Alembic's own table, which says of which revision the others are."""
LEASE = sa.Table(
    "lease",
    METADATA,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("holder", sa.String(255), nullable=False),
    sa.Column("started_s", sa.Float, nullable=False),
    sa.Column("beat", sa.BigInteger, nullable=False),
)
JOBS = sa.Table(
    "jobs",
    METADATA,
    sa.Column("job_id", JOB_ID, primary_key=True),
    sa.Column("number", sa.Float, nullable=False),
    sa.Column("order", sa.BigInteger, nullable=False, unique=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("client_id", sa.Text),
    sa.Column("prompt", sa.Text, nullable=False, info=JSON),
    sa.Column("targets", sa.Text, nullable=False, info=JSON),
    sa.Column("extra_data", sa.Text, nullable=False, info=JSON),
    sa.Column("created_s", sa.Float, nullable=False),
    sa.Column("started_s", sa.Float),
    sa.Column("ended_s", sa.Float),
    sa.Column("failure", sa.Text, nullable=False, info=JSON),
    sa.Column("queued_seq", sa.BigInteger, nullable=False),
    sa.Column("started_seq", sa.BigInteger),
    sa.Column("ended_seq", sa.BigInteger),
    sa.Column("cached", sa.Text, nullable=False, info=JSON),
    sa.Column("losses", sa.Integer, nullable=False, server_default="0"),
    sa.Column("lone_losses", sa.Integer, nullable=False, server_default="0"),
    sa.Column("labels", sa.Text, nullable=False, server_default="{}", info=JSON),
    sa.Column("tenant", sa.String(64), nullable=False, server_default=""),
)
JSON_COLUMNS = frozenset(column.name for column in JOBS.c if column.info is JSON)
"""The columns of a job that hold JSON; the others hold JobRow's fields as they are."""
UNFINISHED = JOBS.c.ended_seq.is_(None)
"""Jobs that have not ended, said so that the index of ends finds them, in the order of submission."""
# Lists are read in these orders without touching the rows' long texts.
_LISTED = (JOBS.c.state, JOBS.c.started_s, JOBS.c.ended_s, JOBS.c.job_id)
sa.Index("jobs_by_end", JOBS.c.ended_seq, JOBS.c.order, *_LISTED, JOBS.c.tenant)
sa.Index("jobs_by_order", JOBS.c.order, JOBS.c.ended_seq, *_LISTED)
TENANTS = JOBS.c.tenant != sa.text("''")
"""Jobs of tenants. Their lists have indexes of their own, which cost a server without tenants nothing."""
_OWN: dict[str, Any] = {"sqlite_where": TENANTS, "postgresql_where": TENANTS}
sa.Index("jobs_of_tenant_by_end", JOBS.c.tenant, JOBS.c.ended_seq, JOBS.c.order, *_LISTED, **_OWN)
sa.Index("jobs_of_tenant_by_order", JOBS.c.tenant, JOBS.c.order, JOBS.c.ended_seq, *_LISTED, **_OWN)
OUTPUTS = sa.Table(
    "outputs",
    METADATA,
    sa.Column("job_id", JOB_ID, primary_key=True),
    sa.Column("node_id", sa.String(255), primary_key=True),
    sa.Column("ui", sa.Text, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
)
# The labels of jobs that have some, by which those are found, the newest first; what a job is told to be is in its row.
LABELS = sa.Table(
    "labels",
    METADATA,
    sa.Column("key", sa.String(40), primary_key=True),
    sa.Column("value", sa.String(256), primary_key=True),
    sa.Column("order", sa.BigInteger, primary_key=True, autoincrement=False),
)
sa.Index("labels_by_job", LABELS.c.order)
# A job or asset has one key at most.
IDEMPOTENCY_KEYS = sa.Table(
    "idempotency_keys",
    METADATA,
    sa.Column("holder", JOB_ID, primary_key=True),
    sa.Column("key", sa.String(255), nullable=False),
    sa.Column("claimed_s", sa.Float, nullable=False),
    sa.Column("tenant", sa.String(64), nullable=False, server_default=""),
)
sa.Index("idempotency_keys_once", IDEMPOTENCY_KEYS.c.tenant, IDEMPOTENCY_KEYS.c.key, unique=True)
sa.Index("idempotency_keys_by_age", IDEMPOTENCY_KEYS.c.claimed_s)
ASSETS = sa.Table(
    "assets",
    METADATA,
    sa.Column("asset_id", sa.String(36), primary_key=True),
    sa.Column("hash", sa.String(71)),
    sa.Column("area", sa.String(8), nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("content_type", sa.String(255), nullable=False),
    sa.Column("name", sa.Text),
    sa.Column("tags", sa.Text, nullable=False),
    sa.Column("created_s", sa.Float, nullable=False),
    sa.Column("expires_s", sa.Float),
    sa.Column("deleted_s", sa.Float),
    sa.Column("job_id", JOB_ID),
    sa.Column("node_id", sa.String(255)),
    sa.Column("tenant", sa.String(64), nullable=False, server_default=""),
    sa.Column("user_metadata", sa.Text, nullable=False, server_default="{}"),
    sa.Column("preview_id", sa.String(36)),
)
for _column in ("hash", "expires_s", "job_id"):
    sa.Index(f"assets_by_{_column}", ASSETS.c[_column])
ASSET_USES = sa.Table(
    "asset_uses",
    METADATA,
    sa.Column("job_id", JOB_ID, primary_key=True),
    sa.Column("asset_id", sa.String(36), primary_key=True),
)
sa.Index("asset_uses_by_asset", ASSET_USES.c.asset_id)
COUNTERS = sa.Table(
    "counters",
    METADATA,
    sa.Column("key", sa.String(LONGEST_KEY), primary_key=True),
    sa.Column("following", sa.BigInteger, nullable=False),
)
RESERVATIONS = sa.Table(
    "reservations",
    METADATA,
    sa.Column("job_id", JOB_ID, primary_key=True),
    sa.Column("node_id", sa.String(255), primary_key=True),
    sa.Column("key", sa.String(LONGEST_KEY), primary_key=True),
    sa.Column("first", sa.BigInteger, nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("ending", sa.Text, nullable=False),
    sa.Column("digests", sa.Text, nullable=False),
)
POOL_SPECS = sa.Table(
    "pool_specs",
    METADATA,
    sa.Column("pool", sa.String(64), primary_key=True),
    sa.Column("specs", sa.Text, nullable=False),
    sa.Column("routes", sa.Text, nullable=False),
)

COSTS = sa.Table(
    "costs",
    METADATA,
    sa.Column("pool", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(8), primary_key=True),
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("samples", sa.BigInteger, nullable=False),
)
# tenant: whose jobs it is told of.
WEBHOOKS = sa.Table(
    "webhooks",
    METADATA,
    sa.Column("webhook_id", sa.String(36), primary_key=True),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("events", sa.Text, nullable=False),
    sa.Column("secret", sa.Text, nullable=False),
    sa.Column("created_s", sa.Float, nullable=False),
    sa.Column("disabled", sa.Text, nullable=False),
)
# The outbox of events for webhooks, and for a while what has left it. place: the event's cursor.
DELIVERIES = sa.Table(
    "deliveries",
    METADATA,
    sa.Column("delivery_id", sa.String(36), primary_key=True),
    sa.Column("webhook_id", sa.String(36), nullable=False),
    sa.Column("job_id", JOB_ID, nullable=False),
    sa.Column("place", sa.BigInteger, nullable=False),
    sa.Column("event", sa.String(16), nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("due_s", sa.Float, nullable=False),
    sa.Column("asked_s", sa.Float, nullable=False),
    sa.Column("ended_s", sa.Float),
    sa.Column("status", sa.Integer),
    sa.Column("problem", sa.Text, nullable=False),
)
_PENDING = DELIVERIES.c.state == "pending"
sa.Index(
    "deliveries_due", DELIVERIES.c.webhook_id, DELIVERIES.c.due_s, sqlite_where=_PENDING, postgresql_where=_PENDING
)
sa.Index("deliveries_by_job", DELIVERIES.c.job_id, DELIVERIES.c.webhook_id, DELIVERIES.c.place)
sa.Index("deliveries_by_place", DELIVERIES.c.webhook_id, DELIVERIES.c.place)

PAUSES = sa.Table(
    "pauses",
    METADATA,
    sa.Column("kind", sa.String(8), primary_key=True),
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("since_s", sa.Float, nullable=False),
)
# Files of jobs that are gone, until they are gone too.
DOOMED_FILES = sa.Table(
    "doomed_files",
    METADATA,
    sa.Column("area", sa.String(8), primary_key=True),
    sa.Column("path", sa.String(1023), primary_key=True),
)

API_KEYS = sa.Table(
    "api_keys",
    METADATA,
    sa.Column("key_id", sa.String(16), primary_key=True),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("scopes", sa.String(100), nullable=False),
    sa.Column("created_s", sa.Float, nullable=False),
    sa.Column("ends_s", sa.Float),
    sa.Column("session_of", sa.String(16)),
)
# Each ingress process numbers what it writes, so that what is written twice is there once.
AUDIT = sa.Table(
    "audit",
    METADATA,
    sa.Column("at_s", sa.Float, nullable=False),
    sa.Column("ingress", sa.String(32), primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("who", sa.String(200), nullable=False),
    sa.Column("what", sa.Text, nullable=False),
    sa.Column("source", sa.String(200), nullable=False),
    sa.Column("result", sa.Integer, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)
sa.Index("audit_by_age", AUDIT.c.at_s)
# The files that tenants have stored, by a hash of where they lie, and their sum. seen_s: when it was last noted.
STORED_FILES = sa.Table(
    "stored_files",
    METADATA,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("seen_s", sa.Float, nullable=False),
)
STORED_BYTES = sa.Table(
    "stored_bytes",
    METADATA,
    sa.Column("tenant", sa.String(64), primary_key=True),
    sa.Column("bytes", sa.BigInteger, nullable=False),
)
# What each tenant has used of GPUs and its jobs have saved, by day of UTC since 1970.
USAGE = sa.Table(
    "usage",
    METADATA,
    sa.Column("tenant", sa.String(64), primary_key=True),
    sa.Column("day", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("gpu_s", sa.Float, nullable=False),
    sa.Column("saved_bytes", sa.BigInteger, nullable=False, server_default="0"),
)
# Who has ended replicas and waits for it. owner: a hash of tenant and client, whose id may be too long for an index.
BACKOFFS = sa.Table(
    "backoffs",
    METADATA,
    sa.Column("owner", sa.String(64), primary_key=True),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("client_id", sa.Text),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("last_s", sa.Float, nullable=False),
    sa.Column("until_s", sa.Float, nullable=False),
)
# What clients have asked to be given as one archive: which files, for a while.
EXPORTS = sa.Table(
    "exports",
    METADATA,
    sa.Column("export_id", sa.String(36), primary_key=True),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("created_s", sa.Float, nullable=False),
    sa.Column("members", sa.Text, nullable=False),
    sa.Column("missing", sa.Text, nullable=False),
)

REVISION = "0003"
"""The newest revision of `migrations`, which the tables here are of."""
ADOPTED = 25
"""The last version that databases had in a table `schema`, before Alembic kept it. Its tables are those of 0001."""

LOCK = 0x5E27EA99
"""PostgreSQL's advisory lock that a migration holds; any number that nobody else in the database uses."""


def migrate(engine: sa.Engine) -> None:
    """Bring a database, empty or older, to REVISION; of several processes at once, one does it and the others wait.

    Errors: ConfigError for a database of a newer release, which this code could only damage, and for one from before
    the first release that ADOPTED is not the version of.
    """
    with alone(engine) as connection:
        there = set(sa.inspect(connection).get_table_names())
        if "jobs" not in there:
            METADATA.create_all(connection)
            connection.execute(sa.insert(REVISIONS).values(version_num=REVISION))
            connection.execute(sa.insert(LEASE).values(name="scheduler", epoch=0, holder="", started_s=0.0, beat=0))
            return
        if REVISIONS.name not in there:
            _adopt(connection, engine)
        if connection.execute(sa.select(REVISIONS.c.version_num)).scalar() != REVISION:
            upgrade(connection, engine)


def _adopt(connection: sa.Connection, engine: sa.Engine) -> None:
    """Have Alembic keep the version of a database from before the first release."""
    has_version = sa.inspect(connection).has_table("schema")
    version = connection.exec_driver_sql("SELECT version FROM schema").scalar() if has_version else "unknown"
    if version != ADOPTED:
        raise ConfigError(
            f"the database {engine.url.render_as_string()} is of version {version}, from before the first release; "
            f"this one takes over version {ADOPTED} alone: open it once with the last commit that knows it"
        )
    connection.exec_driver_sql("DROP TABLE schema")
    REVISIONS.create(connection)
    connection.execute(sa.insert(REVISIONS).values(version_num="0001"))


def upgrade(connection: sa.Connection, engine: sa.Engine, revision: str = "head") -> None:
    """Run the revisions that a database lacks. Errors: ConfigError for one of a revision that is not known here."""
    # Here and not above: most databases are of this revision, and then Alembic is not needed.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, revision)
    except CommandError as error:
        raise ConfigError(
            f"the database {engine.url.render_as_string()} cannot be brought up to revision {REVISION}; "
            f"it may be of a newer release: {error}"
        ) from error


@contextlib.contextmanager
def alone(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Open one transaction that no other migration runs beside, and that takes statements which change tables."""
    if engine.dialect.name == "postgresql":
        from serve_app.store.database.postgres_connection import unlimited  # whose driver is optional

        with engine.begin() as connection, unlimited(connection):
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
            yield connection
        return
    # SQLite's driver opens no transaction before a statement that changes tables, so it is opened by hand.
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.exec_driver_sql("ROLLBACK")
            raise
        connection.exec_driver_sql("COMMIT")
