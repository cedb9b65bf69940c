"""A database that is open: its transactions, the health of SQLite's file, and what an error of the driver's means.

Errors: DatabaseAwayError if it does not answer or refuses for reasons of its own: retry. DatabaseDamagedError if its
file is damaged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

import sqlalchemy as sa

from serve_app import log
from serve_app.errors import ConfigError, DatabaseAwayError, DatabaseDamagedError, DatabaseGoneError
from serve_app.store.database import sqlite_connection
from serve_app.store.database.queries import Query
from serve_app.store.database.schema import migrate
from serve_app.store.database.sqlite_file import SqliteFile, damage, unreadable
from serve_app.store.database.sqlite_log import SqliteLog

T = TypeVar("T")
_log = log.get("store")

STATEMENT_S = 30.0
"""How long PostgreSQL may take to answer one statement."""

PERMANENT_ERRORS = (
    *(sa.exc.IntegrityError, sa.exc.DataError),
    *(UnicodeError, OverflowError, RecursionError, TypeError, ValueError),
)
"""What a statement fails with because of the values in it, however often it is sent."""

PERMANENT_STATES = ("22", "23", "54")
"""Classes of SQLSTATE that say the same: data exception, constraint violation, program limit exceeded."""


class Database:
    """The database by URL: `sqlite:///state/jobs.sqlite`, or `postgresql://user@host/name` with psycopg 3.

    Opening it creates or migrates its tables, unless `migrates` is False. A password that is not in the URL comes from
    PGPASSWORD or PGPASSFILE.
    statement_s: how long PostgreSQL may take to answer one statement. Errors: ConfigError, DatabaseAwayError.
    """

    def __init__(self, url: str, statement_s: float = STATEMENT_S, *, migrates: bool = True) -> None:
        self.engine = database_engine(url, statement_s)
        self._shown = self.engine.url.render_as_string()
        self._file: SqliteFile | None = None
        self._log: SqliteLog | None = None
        self._damage = ""
        """What is wrong with the file, from when that is seen: what is written to it then may be lost with it."""
        if self.engine.dialect.name == "sqlite":
            self._file = file = SqliteFile(self.engine.url)
            if file.path is not None:
                self._log = SqliteLog(file.path)
            # A connection to a path that is free would make an empty database there.
            sa.event.listen(self.engine, "do_connect", lambda *_: file.check())
            sa.event.listen(self.engine, "connect", lambda *_: file.connected())
        if migrates:
            with self._answering():
                migrate(self.engine)

    def close(self) -> None:
        """Close every connection."""
        if self._log is not None:
            self._log.close()
        if self._file is not None:
            with contextlib.suppress(DatabaseGoneError):
                self._file.restore(self.engine)
            self._file.close()
        self.engine.dispose()

    def administer(self, query: Query[T]) -> T:
        """Execute a query that concerns no job, without holding the lease, as the command line does for keys."""
        with self._transaction() as connection:
            return query.execute(connection)

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[sa.Connection]:
        """Open a snapshot transaction: it sees the database as of its first statement."""
        sqlite = self.engine.dialect.name == "sqlite"
        level = "AUTOCOMMIT" if sqlite else "REPEATABLE READ"
        with self._answering(), self.engine.connect().execution_options(isolation_level=level) as connection:
            if sqlite:  # its driver opens none for what only reads
                connection.exec_driver_sql("BEGIN")
            yield connection
            if sqlite:
                connection.exec_driver_sql("COMMIT")

    def check_there(self) -> None:
        """Check that the database's file is still at its path and not known to be damaged.

        Errors: DatabaseGoneError, which a write may mend; DatabaseDamagedError.
        """
        self.check_sound()
        if self._file is not None:
            self._file.check()

    def inspect(self) -> None:
        """Check every page of SQLite's file. Once one is damaged, all writes are refused."""
        path = None if self._file is None else self._file.path
        if path is not None and not self._damage and (found := damage(path)):
            self._damage = found
            _log.error("%s", self._damaged())

    def check_sound(self) -> None:
        """Check that the file is not known to be damaged. Errors: DatabaseDamagedError."""
        if self._damage:
            raise self._damaged()

    def _damaged(self) -> DatabaseDamagedError:
        return DatabaseDamagedError(
            f"the database {self._shown} is damaged, and nothing more is written to it: {self._damage}; stop the "
            "server, put a backup in its place with `serve-app restore --replace BACKUP`, or move it away, with its "
            "-wal and -shm, to begin anew; then start the server",
            retry_after_s=5,
        )

    @contextlib.contextmanager
    def _transaction(self, changes: int = 1) -> Iterator[sa.Connection]:
        with self._answering():
            self.check_sound()
            if self._file is not None:
                self._file.restore(self.engine)
            try:
                with self.engine.begin() as connection:
                    yield connection
            except sa.exc.SQLAlchemyError as error:
                if not is_permanent(error):
                    # Whatever ails the database, as a change of its server's role, ails all sessions from before.
                    self.engine.dispose()
                raise
            if self._log is not None:
                self._log.wrote(changes)
            # Whatever went into a file that is gone meanwhile has not been written.
            self.check_there()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Yield a connection to read with. Errors: DatabaseAwayError."""
        with self._answering(), self.engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn the driver's connection errors into DatabaseAwayError."""
        try:
            yield
        except sa.exc.SQLAlchemyError as error:
            if unreadable(error):
                self._damage = reason(error)
                raise self._damaged() from error
            raise DatabaseAwayError(f"the database {self._shown}: {reason(error)}", retry_after_s=2) from error


def exists(url: str) -> bool:
    """Whether SQLite's file is there, which opening it would make; another database answers for itself."""
    where = sa.make_url(url)
    path = SqliteFile(where).path if where.get_backend_name() == "sqlite" else None
    return path is None or path.is_file()


def check_exists(url: str) -> None:
    """Check that a database exists. Errors: ConfigError."""
    if not exists(url):
        path = sa.make_url(url).database
        raise ConfigError(f"there is no database {path}: give --database-url, or --config with its `database_url`")


def unlimited_statements(connection: sa.Connection) -> contextlib.AbstractContextManager[None]:
    """Let statements of a connection take any time, within the context."""
    if connection.dialect.name == "sqlite":
        return contextlib.nullcontext()
    from serve_app.store.database.postgres_connection import unlimited

    return unlimited(connection)


def is_permanent(error: Exception) -> bool:
    """Whether the database will never take what it refused."""
    if isinstance(error, PERMANENT_ERRORS):
        return True
    if isinstance(error, sa.exc.StatementError) and not isinstance(error, sa.exc.DBAPIError):
        return True  # a value that could not even be sent
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    if state is None:  # of the driver's own making: it knows no way to send a value of that type
        return isinstance(error, sa.exc.ProgrammingError | sa.exc.InterfaceError)
    return state[:2] in PERMANENT_STATES


def reason(error: Exception) -> str:
    """Return the driver's message: SQLAlchemy's contains the statement with its values."""
    words = str(getattr(error, "orig", None) or error).strip() or type(error).__name__
    return words.splitlines()[0][:500]


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
