"""The database's tables, and how an older database comes to have them.

The table `schema` says which version a database is of. A new version is a new entry in MIGRATIONS, in SQL that SQLite
and PostgreSQL both take, and the same change in the tables here: a new database is made from the tables, an older one
step by step, and both are then equal. What only PostgreSQL needs is in WIDER.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from serve_app.errors import ConfigError
from serve_app.store.files.reserved import LONGEST_KEY
from serve_app.store.tenants.tenants import JOB_ID_LENGTH

METADATA = sa.MetaData()
JOB_ID = sa.String(JOB_ID_LENGTH).with_variant(sa.String(64), "sqlite")
"""A job's id, as `tenants.job_id_of` makes it. SQLite takes texts of any length, and changes no column's type."""

SCHEMA = sa.Table("schema", METADATA, sa.Column("version", sa.Integer, nullable=False))
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
    sa.Column("cached", sa.Text, nullable=False),
    sa.Column("losses", sa.Integer, nullable=False, server_default="0"),
    sa.Column("lone_losses", sa.Integer, nullable=False, server_default="0"),
    sa.Column("labels", sa.Text, nullable=False, server_default="{}"),
    sa.Column("tenant", sa.String(64), nullable=False, server_default=""),
)
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
# What each tenant has used of GPUs, by day of UTC since 1970.
USAGE = sa.Table(
    "usage",
    METADATA,
    sa.Column("tenant", sa.String(64), primary_key=True),
    sa.Column("day", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("gpu_s", sa.Float, nullable=False),
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

MIGRATIONS: Mapping[int, tuple[str, ...]] = {
    2: ("ALTER TABLE lease RENAME COLUMN first_start_s TO started_s",),
    3: (
        "CREATE INDEX jobs_by_end ON jobs (ended_seq)",
        'CREATE INDEX jobs_by_creation ON jobs (created_s, "order")',
    ),
    4: ("ALTER TABLE pool_specs ADD COLUMN routes TEXT NOT NULL DEFAULT '[]'",),
    5: ("ALTER TABLE jobs ADD COLUMN cached TEXT NOT NULL DEFAULT '[]'",),
    6: (
        "ALTER TABLE jobs ADD COLUMN losses INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE jobs ADD COLUMN lone_losses INTEGER NOT NULL DEFAULT 0",
    ),
    7: ("ALTER TABLE lease ADD COLUMN beat BIGINT NOT NULL DEFAULT 0",),
    8: (
        "DROP INDEX jobs_by_end",
        "DROP INDEX jobs_by_creation",
        'CREATE INDEX jobs_by_end ON jobs (ended_seq, "order", state, started_s, ended_s, job_id)',
        'CREATE INDEX jobs_by_creation ON jobs (created_s, "order", state, started_s, ended_s, job_id)',
    ),
    9: (
        "ALTER TABLE reservations ADD COLUMN suffix TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE reservations ADD COLUMN digests TEXT NOT NULL DEFAULT '[]'",
    ),
    10: (
        "ALTER TABLE reservations RENAME COLUMN suffix TO ending",
        "UPDATE reservations SET ending = '_' || ending WHERE ending <> ''",
    ),
    11: (
        "CREATE TABLE costs (pool VARCHAR(64) NOT NULL, kind VARCHAR(8) NOT NULL, name VARCHAR(255) NOT NULL, "
        "seconds FLOAT NOT NULL, samples BIGINT NOT NULL, PRIMARY KEY (pool, kind, name))",
    ),
    12: (
        "ALTER TABLE jobs ADD COLUMN labels TEXT NOT NULL DEFAULT '{}'",
        'CREATE TABLE labels (key VARCHAR(40) NOT NULL, value VARCHAR(256) NOT NULL, "order" BIGINT NOT NULL, '
        'PRIMARY KEY (key, value, "order"))',
        'CREATE INDEX labels_by_job ON labels ("order")',
        "CREATE TABLE idempotency_keys (job_id VARCHAR(64) NOT NULL, key VARCHAR(255) NOT NULL, "
        "claimed_s FLOAT NOT NULL, PRIMARY KEY (job_id))",
        "CREATE UNIQUE INDEX idempotency_keys_once ON idempotency_keys (key)",
        "CREATE INDEX idempotency_keys_by_age ON idempotency_keys (claimed_s)",
    ),
    13: (
        "ALTER TABLE idempotency_keys RENAME COLUMN job_id TO holder",
        "CREATE TABLE assets (asset_id VARCHAR(36) NOT NULL, hash VARCHAR(71), area VARCHAR(8) NOT NULL, "
        "path TEXT NOT NULL, size BIGINT NOT NULL, content_type VARCHAR(255) NOT NULL, name TEXT, tags TEXT NOT NULL, "
        "created_s FLOAT NOT NULL, expires_s FLOAT, deleted_s FLOAT, job_id VARCHAR(64), node_id VARCHAR(255), "
        "PRIMARY KEY (asset_id))",
        *(f"CREATE INDEX assets_by_{column} ON assets ({column})" for column in ("hash", "expires_s", "job_id")),
        "CREATE TABLE asset_uses (job_id VARCHAR(64) NOT NULL, asset_id VARCHAR(36) NOT NULL, "
        "PRIMARY KEY (job_id, asset_id))",
        "CREATE INDEX asset_uses_by_asset ON asset_uses (asset_id)",
    ),
    14: ("ALTER TABLE jobs ADD COLUMN tenant VARCHAR(64) NOT NULL DEFAULT ''",),
    15: (
        "CREATE TABLE pauses (kind VARCHAR(8) NOT NULL, name VARCHAR(255) NOT NULL, since_s FLOAT NOT NULL, "
        "PRIMARY KEY (kind, name))",
    ),
    16: (
        "CREATE TABLE webhooks (webhook_id VARCHAR(36) NOT NULL, tenant VARCHAR(64) NOT NULL, url TEXT NOT NULL, "
        "events TEXT NOT NULL, secret TEXT NOT NULL, created_s FLOAT NOT NULL, disabled TEXT NOT NULL, "
        "PRIMARY KEY (webhook_id))",
        "CREATE TABLE deliveries (delivery_id VARCHAR(36) NOT NULL, webhook_id VARCHAR(36) NOT NULL, "
        "job_id VARCHAR(64) NOT NULL, place BIGINT NOT NULL, event VARCHAR(16) NOT NULL, payload TEXT NOT NULL, "
        "state VARCHAR(10) NOT NULL, attempts INTEGER NOT NULL, due_s FLOAT NOT NULL, asked_s FLOAT NOT NULL, "
        "ended_s FLOAT, status INTEGER, problem TEXT NOT NULL, PRIMARY KEY (delivery_id))",
        "CREATE INDEX deliveries_due ON deliveries (webhook_id, due_s) WHERE state = 'pending'",
        "CREATE INDEX deliveries_by_job ON deliveries (job_id, webhook_id, place)",
        "CREATE INDEX deliveries_by_place ON deliveries (webhook_id, place)",
    ),
    17: (
        "CREATE TABLE doomed_files (area VARCHAR(8) NOT NULL, path VARCHAR(1023) NOT NULL, PRIMARY KEY (area, path))",
    ),
    18: (
        'CREATE INDEX jobs_of_tenant_by_end ON jobs (tenant, ended_seq, "order", state, started_s, ended_s, job_id) '
        "WHERE tenant != ''",
        "CREATE INDEX jobs_of_tenant_by_creation ON jobs "
        "(tenant, created_s, \"order\", state, started_s, ended_s, job_id) WHERE tenant != ''",
        "CREATE INDEX jobs_of_tenant_by_order ON jobs (tenant, \"order\") WHERE tenant != ''",
        "ALTER TABLE assets ADD COLUMN tenant VARCHAR(64) NOT NULL DEFAULT ''",
        "ALTER TABLE idempotency_keys ADD COLUMN tenant VARCHAR(64) NOT NULL DEFAULT ''",
        "DROP INDEX idempotency_keys_once",
        "CREATE UNIQUE INDEX idempotency_keys_once ON idempotency_keys (tenant, key)",
        "CREATE TABLE api_keys (key_id VARCHAR(16) NOT NULL, tenant VARCHAR(64) NOT NULL, name VARCHAR(100) NOT NULL, "
        "hash VARCHAR(64) NOT NULL, scopes VARCHAR(100) NOT NULL, created_s FLOAT NOT NULL, ends_s FLOAT, "
        "PRIMARY KEY (key_id))",
        "CREATE TABLE audit (at_s FLOAT NOT NULL, ingress VARCHAR(32) NOT NULL, number BIGINT NOT NULL, "
        "tenant VARCHAR(64) NOT NULL, who VARCHAR(200) NOT NULL, what TEXT NOT NULL, source VARCHAR(200) NOT NULL, "
        "result INTEGER NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (ingress, number))",
        "CREATE INDEX audit_by_age ON audit (at_s)",
    ),
    19: (
        "CREATE TABLE usage (tenant VARCHAR(64) NOT NULL, day BIGINT NOT NULL, gpu_s FLOAT NOT NULL, "
        "PRIMARY KEY (tenant, day))",
    ),
    20: (
        "CREATE TABLE exports (export_id VARCHAR(36) NOT NULL, tenant VARCHAR(64) NOT NULL, created_s FLOAT NOT NULL, "
        "members TEXT NOT NULL, missing TEXT NOT NULL, PRIMARY KEY (export_id))",
    ),
    21: (
        "CREATE TABLE stored_files (name VARCHAR(64) NOT NULL, tenant VARCHAR(64) NOT NULL, size BIGINT NOT NULL, "
        "seen_s FLOAT NOT NULL, PRIMARY KEY (name))",
        "CREATE TABLE stored_bytes (tenant VARCHAR(64) NOT NULL, bytes BIGINT NOT NULL, PRIMARY KEY (tenant))",
    ),
    22: (
        "ALTER TABLE assets ADD COLUMN user_metadata TEXT NOT NULL DEFAULT '{}'",
        "ALTER TABLE assets ADD COLUMN preview_id VARCHAR(36)",
    ),
    23: (
        "DROP INDEX jobs_by_end",
        "DROP INDEX jobs_by_creation",
        "DROP INDEX jobs_of_tenant_by_creation",
        "DROP INDEX jobs_of_tenant_by_order",
        'CREATE INDEX jobs_by_end ON jobs (ended_seq, "order", state, started_s, ended_s, job_id, tenant)',
        'CREATE INDEX jobs_by_order ON jobs ("order", ended_seq, state, started_s, ended_s, job_id)',
        "CREATE INDEX jobs_of_tenant_by_order ON jobs "
        "(tenant, \"order\", ended_seq, state, started_s, ended_s, job_id) WHERE tenant != ''",
    ),
    24: ("DROP INDEX jobs_unfinished",),
    25: ("ALTER TABLE api_keys ADD COLUMN session_of VARCHAR(16)",),
    26: (
        *(
            f"UPDATE {table} SET job_id = job_id || '@' || "
            f"(SELECT tenant FROM jobs WHERE jobs.job_id = {table}.job_id) "
            "WHERE job_id IN (SELECT job_id FROM jobs WHERE tenant <> '')"
            for table in ("outputs", "asset_uses", "reservations", "deliveries")
        ),
        "UPDATE idempotency_keys SET holder = holder || '@' || tenant "
        "WHERE tenant <> '' AND holder IN (SELECT job_id FROM jobs)",
        "UPDATE assets SET job_id = job_id || '@' || tenant WHERE tenant <> '' AND job_id IS NOT NULL",
        "UPDATE jobs SET job_id = job_id || '@' || tenant WHERE tenant <> ''",
    ),
    27: (
        "CREATE TABLE backoffs (owner VARCHAR(64) NOT NULL, tenant VARCHAR(64) NOT NULL, client_id TEXT, "
        "count INTEGER NOT NULL, last_s FLOAT NOT NULL, until_s FLOAT NOT NULL, PRIMARY KEY (owner))",
    ),
}
"""What makes a database of this version out of one of the version before."""

WIDER: Mapping[int, tuple[str, ...]] = {
    26: tuple(
        f"ALTER TABLE {table} ALTER COLUMN {column} TYPE VARCHAR(100)"
        for table, column in (
            *((table, "job_id") for table in ("jobs", "outputs", "assets", "asset_uses", "reservations", "deliveries")),
            ("idempotency_keys", "holder"),
        )
    ),
}
"""What comes before on PostgreSQL, which keeps texts to their column's length."""

VERSION = max(MIGRATIONS)
"""The version that the tables here are of."""

LOCK = 0x5E27EA99
"""PostgreSQL's advisory lock that a migration holds; any number that nobody else in the database uses."""


def steps(version: int, dialect: str) -> Sequence[str]:
    """Return the statements that make a database of a version out of one of the version before."""
    return (*WIDER.get(version, ()), *MIGRATIONS[version]) if dialect == "postgresql" else MIGRATIONS[version]


def migrate(engine: sa.Engine) -> None:
    """Bring a database, empty or older, to VERSION; of several processes at once, one does it and the others wait.

    Errors: ConfigError for a database of a newer version, which this code could only damage.
    """
    with _alone(engine) as connection:
        if not sa.inspect(connection).has_table("jobs"):
            METADATA.create_all(connection)
            version = VERSION
        else:
            SCHEMA.create(connection, checkfirst=True)
            version = connection.execute(sa.select(SCHEMA.c.version)).scalar() or _unwritten_version(connection)
        if version > VERSION:
            raise ConfigError(
                f"the database {engine.url.render_as_string()} is of version {version}, "
                f"made by a newer release; this one knows versions up to {VERSION}"
            )
        for number in range(version + 1, VERSION + 1):
            for statement in steps(number, engine.dialect.name):
                connection.exec_driver_sql(statement)
        connection.execute(sa.delete(SCHEMA))
        connection.execute(sa.insert(SCHEMA).values(version=VERSION))
        if connection.execute(sa.select(LEASE.c.epoch)).first() is None:
            connection.execute(sa.insert(LEASE).values(name="scheduler", epoch=0, holder="", started_s=0.0, beat=0))


def _unwritten_version(connection: sa.Connection) -> int:
    """Return the version of a database from before versions were written down, by what it has."""
    inspector = sa.inspect(connection)
    if "first_start_s" in {column["name"] for column in inspector.get_columns("lease")}:
        return 1
    return 3 if "jobs_by_end" in {index["name"] for index in inspector.get_indexes("jobs")} else 2


@contextlib.contextmanager
def _alone(engine: sa.Engine) -> Iterator[sa.Connection]:
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
