"""The connections to a database, by its URL: SQLite's file or PostgreSQL."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from serve_app.errors import ConfigError
from serve_app.store.database import sqlite_connection


def database_engine(url: str, statement_s: float) -> sa.Engine:
    """Make the engine of a database. Errors: ConfigError for an invalid URL or a missing driver."""
    try:
        parsed = sa.make_url(url)
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() == "sqlite":
            if parsed.database in (None, "", ":memory:"):
                raise ConfigError(f"database_url names no file: {url!r}; each thread would have a database of its own")
            # A connection drops the pages it has cached once another has written, so all writes go to the same one.
            # Parameters are named, as with PostgreSQL's driver: `execute` passes rows to either unchanged.
            engine = sa.create_engine(parsed, pool_use_lifo=True, paramstyle="named")
            sa.event.listen(engine, "connect", sqlite_connection.prepare)
            return engine
        from serve_app.store.database import postgres_connection  # whose driver is optional

        def connected(_dialect: object, _record: object, arguments: Any, parameters: Any) -> Any:
            parameters = {**postgres_connection.PARAMETERS, **parameters}
            return postgres_connection.connect(arguments, parameters, statement_s)

        # A connection that the server has dropped meanwhile is noticed before it is used, and replaced.
        engine = sa.create_engine(parsed, pool_pre_ping=True)
        sa.event.listen(engine, "do_connect", connected)
        return engine
    except (sa.exc.ArgumentError, ImportError) as error:
        hint = "; pip install 'serve-app[postgres]'" if isinstance(error, ImportError) else ""
        raise ConfigError(f"database_url cannot be used: {error}{hint}") from error
