"""A tenant's jobs have its name in their ids; who has ended replicas is kept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TABLES = ("outputs", "asset_uses", "reservations", "deliveries")
"""Those with a job's id and no tenant."""


def upgrade() -> None:
    """Make the tables of this revision out of those before it."""
    # SQLite takes texts of any length, and changes no column's type.
    if op.get_context().dialect.name == "postgresql":
        for table, column in (
            *((table, "job_id") for table in ("jobs", "assets", *TABLES)),
            ("idempotency_keys", "holder"),
        ):
            op.alter_column(table, column, type_=sa.String(100))
    for table in TABLES:
        op.execute(
            f"UPDATE {table} SET job_id = job_id || '@' || "
            f"(SELECT tenant FROM jobs WHERE jobs.job_id = {table}.job_id) "
            "WHERE job_id IN (SELECT job_id FROM jobs WHERE tenant <> '')"
        )
    op.execute(
        "UPDATE idempotency_keys SET holder = holder || '@' || tenant "
        "WHERE tenant <> '' AND holder IN (SELECT job_id FROM jobs)"
    )
    op.execute("UPDATE assets SET job_id = job_id || '@' || tenant WHERE tenant <> '' AND job_id IS NOT NULL")
    op.execute("UPDATE jobs SET job_id = job_id || '@' || tenant WHERE tenant <> ''")
    op.create_table(
        "backoffs",
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("client_id", sa.Text(), nullable=True),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("last_s", sa.Float(), nullable=False),
        sa.Column("until_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("owner"),
    )
