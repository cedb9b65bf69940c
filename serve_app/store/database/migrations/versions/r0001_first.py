"""The tables as they were when Alembic came to keep them: those of version 25."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

JOB_ID = sa.String(64)
OF_TENANTS: dict[str, Any] = dict.fromkeys(("sqlite_where", "postgresql_where"), sa.text("tenant != ''"))
PENDING: dict[str, Any] = dict.fromkeys(("sqlite_where", "postgresql_where"), sa.text("state = 'pending'"))


def upgrade() -> None:
    """Make all tables in an empty database."""
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.String(length=16), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("scopes", sa.String(length=100), nullable=False),
        sa.Column("created_s", sa.Float(), nullable=False),
        sa.Column("ends_s", sa.Float(), nullable=True),
        sa.Column("session_of", sa.String(length=16), nullable=True),
        sa.PrimaryKeyConstraint("key_id"),
    )
    op.create_table(
        "asset_uses",
        sa.Column("job_id", JOB_ID, nullable=False),
        sa.Column("asset_id", sa.String(length=36), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "asset_id"),
    )
    op.create_index("asset_uses_by_asset", "asset_uses", ["asset_id"])
    op.create_table(
        "assets",
        sa.Column("asset_id", sa.String(length=36), nullable=False),
        sa.Column("hash", sa.String(length=71), nullable=True),
        sa.Column("area", sa.String(length=8), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("content_type", sa.String(length=255), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("created_s", sa.Float(), nullable=False),
        sa.Column("expires_s", sa.Float(), nullable=True),
        sa.Column("deleted_s", sa.Float(), nullable=True),
        sa.Column("job_id", JOB_ID, nullable=True),
        sa.Column("node_id", sa.String(length=255), nullable=True),
        sa.Column("tenant", sa.String(length=64), server_default="", nullable=False),
        sa.Column("user_metadata", sa.Text(), server_default="{}", nullable=False),
        sa.Column("preview_id", sa.String(length=36), nullable=True),
        sa.PrimaryKeyConstraint("asset_id"),
    )
    op.create_index("assets_by_expires_s", "assets", ["expires_s"])
    op.create_index("assets_by_hash", "assets", ["hash"])
    op.create_index("assets_by_job_id", "assets", ["job_id"])
    op.create_table(
        "audit",
        sa.Column("at_s", sa.Float(), nullable=False),
        sa.Column("ingress", sa.String(length=32), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("who", sa.String(length=200), nullable=False),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("source", sa.String(length=200), nullable=False),
        sa.Column("result", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("ingress", "number"),
    )
    op.create_index("audit_by_age", "audit", ["at_s"])
    op.create_table(
        "costs",
        sa.Column("pool", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("samples", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("pool", "kind", "name"),
    )
    op.create_table(
        "counters",
        sa.Column("key", sa.String(length=767), nullable=False),
        sa.Column("following", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_table(
        "deliveries",
        sa.Column("delivery_id", sa.String(length=36), nullable=False),
        sa.Column("webhook_id", sa.String(length=36), nullable=False),
        sa.Column("job_id", JOB_ID, nullable=False),
        sa.Column("place", sa.BigInteger(), nullable=False),
        sa.Column("event", sa.String(length=16), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due_s", sa.Float(), nullable=False),
        sa.Column("asked_s", sa.Float(), nullable=False),
        sa.Column("ended_s", sa.Float(), nullable=True),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("problem", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("delivery_id"),
    )
    op.create_index("deliveries_by_job", "deliveries", ["job_id", "webhook_id", "place"])
    op.create_index("deliveries_by_place", "deliveries", ["webhook_id", "place"])
    op.create_index(
        "deliveries_due",
        "deliveries",
        ["webhook_id", "due_s"],
        unique=False,
        sqlite_where=sa.text("state = 'pending'"),
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_table(
        "doomed_files",
        sa.Column("area", sa.String(length=8), nullable=False),
        sa.Column("path", sa.String(length=1023), nullable=False),
        sa.PrimaryKeyConstraint("area", "path"),
    )
    op.create_table(
        "exports",
        sa.Column("export_id", sa.String(length=36), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("created_s", sa.Float(), nullable=False),
        sa.Column("members", sa.Text(), nullable=False),
        sa.Column("missing", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("export_id"),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("holder", JOB_ID, nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("claimed_s", sa.Float(), nullable=False),
        sa.Column("tenant", sa.String(length=64), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("holder"),
    )
    op.create_index("idempotency_keys_by_age", "idempotency_keys", ["claimed_s"])
    op.create_index("idempotency_keys_once", "idempotency_keys", ["tenant", "key"], unique=True)
    op.create_table(
        "jobs",
        sa.Column("job_id", JOB_ID, nullable=False),
        sa.Column("number", sa.Float(), nullable=False),
        sa.Column("order", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("client_id", sa.Text(), nullable=True),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("targets", sa.Text(), nullable=False),
        sa.Column("extra_data", sa.Text(), nullable=False),
        sa.Column("created_s", sa.Float(), nullable=False),
        sa.Column("started_s", sa.Float(), nullable=True),
        sa.Column("ended_s", sa.Float(), nullable=True),
        sa.Column("failure", sa.Text(), nullable=False),
        sa.Column("queued_seq", sa.BigInteger(), nullable=False),
        sa.Column("started_seq", sa.BigInteger(), nullable=True),
        sa.Column("ended_seq", sa.BigInteger(), nullable=True),
        sa.Column("cached", sa.Text(), nullable=False),
        sa.Column("losses", sa.Integer(), server_default="0", nullable=False),
        sa.Column("lone_losses", sa.Integer(), server_default="0", nullable=False),
        sa.Column("labels", sa.Text(), server_default="{}", nullable=False),
        sa.Column("tenant", sa.String(length=64), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("job_id"),
        sa.UniqueConstraint("order"),
    )
    op.create_index("jobs_by_end", "jobs", ["ended_seq", "order", "state", "started_s", "ended_s", "job_id", "tenant"])
    op.create_index("jobs_by_order", "jobs", ["order", "ended_seq", "state", "started_s", "ended_s", "job_id"])
    op.create_index(
        "jobs_of_tenant_by_end",
        "jobs",
        ["tenant", "ended_seq", "order", "state", "started_s", "ended_s", "job_id"],
        unique=False,
        sqlite_where=sa.text("tenant != ''"),
        postgresql_where=sa.text("tenant != ''"),
    )
    op.create_index(
        "jobs_of_tenant_by_order",
        "jobs",
        ["tenant", "order", "ended_seq", "state", "started_s", "ended_s", "job_id"],
        unique=False,
        sqlite_where=sa.text("tenant != ''"),
        postgresql_where=sa.text("tenant != ''"),
    )
    op.create_table(
        "labels",
        sa.Column("key", sa.String(length=40), nullable=False),
        sa.Column("value", sa.String(length=256), nullable=False),
        sa.Column("order", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("key", "value", "order"),
    )
    op.create_index("labels_by_job", "labels", ["order"])
    op.create_table(
        "lease",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.String(length=255), nullable=False),
        sa.Column("started_s", sa.Float(), nullable=False),
        sa.Column("beat", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "outputs",
        sa.Column("job_id", JOB_ID, nullable=False),
        sa.Column("node_id", sa.String(length=255), nullable=False),
        sa.Column("ui", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "node_id"),
    )
    op.create_table(
        "pauses",
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("since_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "name"),
    )
    op.create_table(
        "pool_specs",
        sa.Column("pool", sa.String(length=64), nullable=False),
        sa.Column("specs", sa.Text(), nullable=False),
        sa.Column("routes", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("pool"),
    )
    op.create_table(
        "reservations",
        sa.Column("job_id", JOB_ID, nullable=False),
        sa.Column("node_id", sa.String(length=255), nullable=False),
        sa.Column("key", sa.String(length=767), nullable=False),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("ending", sa.Text(), nullable=False),
        sa.Column("digests", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "node_id", "key"),
    )
    op.create_table(
        "stored_bytes",
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant"),
    )
    op.create_table(
        "stored_files",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("seen_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "usage",
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("day", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("gpu_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "day"),
    )
    op.create_table(
        "webhooks",
        sa.Column("webhook_id", sa.String(length=36), nullable=False),
        sa.Column("tenant", sa.String(length=64), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("events", sa.Text(), nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("created_s", sa.Float(), nullable=False),
        sa.Column("disabled", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("webhook_id"),
    )
    op.execute("INSERT INTO lease (name, epoch, holder, started_s, beat) VALUES ('scheduler', 0, '', 0, 0)")
