"""The audit log: caller, action, source and result of requests, kept as long as configured."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import sqlalchemy as sa

from serve_app.store.database.insert_once import insert_once
from serve_app.store.database.query_scope import ServerScoped
from serve_app.store.database.schema import AUDIT

BACKUP = "serve-app backup"
"""What an entry says of a backup. Such entries stay, so that the last one's age is known however long ago it was."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One request. ingress, number: which process wrote it as its how manieth. who: the key, or the token's subject.

    what: method and path. source: the address it came from. result: its status code, 0 of an
    entry for several. reason: why it was refused.
    """

    at_s: float
    ingress: str
    number: int
    tenant: str
    who: str
    what: str
    source: str
    result: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class WriteAudit(ServerScoped):
    """Stores entries, and deletes those from before a time."""

    writes: ClassVar[bool] = True

    entries: tuple[AuditEntry, ...]
    before_s: float

    def execute(self, connection: sa.Connection) -> None:
        """Insert and delete them."""
        rows = [{f.name: getattr(entry, f.name) for f in fields(entry)} for entry in self.entries]
        insert_once(connection, AUDIT, ("ingress", "number"), rows)
        connection.execute(sa.delete(AUDIT).where(AUDIT.c.at_s < self.before_s, AUDIT.c.what != BACKUP))


@dataclass(frozen=True, slots=True)
class ReadLastBackup(ServerScoped):
    """The Unix time of the last backup that the command line made; None without one."""

    writes: ClassVar[bool] = False

    def execute(self, connection: sa.Connection) -> float | None:
        """Return it."""
        found = sa.select(sa.func.max(AUDIT.c.at_s)).where(AUDIT.c.what == BACKUP)
        return connection.execute(found).scalar()


@dataclass(frozen=True, slots=True)
class ReadAudit(ServerScoped):
    """Lists the newest entries: at most `limit`, from before a time. tenant: only of one, None for all."""

    writes: ClassVar[bool] = False

    limit: int
    before_s: float | None = None
    whose: str | None = None

    def execute(self, connection: sa.Connection) -> tuple[AuditEntry, ...]:
        """Return them, the newest first."""
        found = sa.select(AUDIT).order_by(AUDIT.c.at_s.desc(), AUDIT.c.number.desc()).limit(self.limit)
        if self.before_s is not None:
            found = found.where(AUDIT.c.at_s < self.before_s)
        if self.whose is not None:
            found = found.where(AUDIT.c.tenant == self.whose)
        return tuple(AuditEntry(**row._mapping) for row in connection.execute(found))
