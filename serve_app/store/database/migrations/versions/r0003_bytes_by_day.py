"""What jobs have saved is summed by tenant and day, beside the GPU time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables of this revision out of those before it."""
    op.add_column("usage", sa.Column("saved_bytes", sa.BigInteger(), nullable=False, server_default="0"))
