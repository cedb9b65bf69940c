"""What Alembic runs: the revisions over a connection that `schema.migrate` has opened, or that alembic.ini names."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context

from serve_app.store.database.schema import METADATA


def run(connection: sa.Connection) -> None:
    """Run what Alembic was asked for."""
    context.configure(connection=connection, target_metadata=METADATA, render_as_batch=True)
    context.run_migrations()


if (given := context.config.attributes.get("connection")) is not None:
    run(given)
else:
    url = context.config.get_main_option("sqlalchemy.url")
    assert url is not None
    with sa.create_engine(url).begin() as opened:
        run(opened)
