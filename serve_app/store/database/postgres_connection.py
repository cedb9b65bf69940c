"""How each connection to PostgreSQL is set up: to a server that takes writes, and with a limit on every statement.

PostgreSQL's own limits end no statement whose answer is lost on a network that keeps the TCP connection up, so the
client has one too; psycopg waits for every answer in `Connection.wait`. Source: PostgreSQL's documentation, "Database
Connection Control Functions" and "Client Connection Defaults".
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg.abc import PQGen

T = TypeVar("T")

PARAMETERS = {
    "target_session_attrs": "read-write",
    "connect_timeout": 5,
    "tcp_user_timeout": 20_000,
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
"""What the URL does not say, in libpq's keys: no server that takes no writes, and how long a host may be silent."""

UNLIMITED_S = 86_400.0
"""What a migration or the restoring of a backup may take for one statement."""

_POLL_S = 0.1
"""How often psycopg looks for signals while it waits, as by its own default."""

_SERVERS_LIMITS = (
    "SELECT set_config(name, %s, false) FROM pg_settings "
    "WHERE name IN ('statement_timeout', 'idle_in_transaction_session_timeout') AND setting = '0'"
)
"""The same limit in the server, unless that has one: a session that its client gave up keeps no row locked."""


class LimitedConnection(psycopg.Connection[Any]):
    """A connection that is closed when the server has not answered a statement within `limit_s`."""

    limit_s = UNLIMITED_S

    def wait(self, gen: PQGen[T], interval: float = _POLL_S, timeout: float | None = None) -> T:
        """Return what the server answers. Errors: psycopg.OperationalError, also for no answer in time."""
        began_s, limit_s = time.monotonic(), self.limit_s if timeout is None else timeout
        try:
            return super().wait(gen, interval, limit_s)
        except psycopg.OperationalError as error:
            if timeout is not None or self.closed or time.monotonic() - began_s < limit_s:
                raise
            # The answer may still come, and would be taken for that of the next statement.
            self.close()
            raise psycopg.OperationalError(f"no answer to a statement within {limit_s:g} s") from error


def connect(arguments: tuple[Any, ...], parameters: dict[str, Any], limit_s: float) -> LimitedConnection:
    """Return a new connection. Errors: psycopg.OperationalError."""
    connection = LimitedConnection.connect(*arguments, **parameters)
    connection.limit_s = limit_s
    connection.execute(_SERVERS_LIMITS, [f"{limit_s:g}s"])
    connection.commit()
    return connection


@contextlib.contextmanager
def unlimited(connection: sa.Connection) -> Iterator[None]:
    """Let each statement of the open transaction take as long as it needs; for any kind of database."""
    driver = connection.connection.dbapi_connection
    if not isinstance(driver, LimitedConnection):
        yield
        return
    connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
    limit_s, driver.limit_s = driver.limit_s, UNLIMITED_S
    try:
        yield
    finally:
        driver.limit_s = limit_s
