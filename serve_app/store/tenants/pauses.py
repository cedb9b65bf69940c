"""What an operator holds back: the whole queue, the jobs that need a pool, or those of a tenant.

Kept in the database until it is resumed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, TypeAlias

import sqlalchemy as sa

from serve_app.store.database.insert_once import insert_once
from serve_app.store.database.query_scope import ServerScoped
from serve_app.store.database.schema import PAUSES

PauseKind: TypeAlias = Literal["queue", "pool", "tenant"]
KINDS: tuple[PauseKind, ...] = ("queue", "pool", "tenant")


class Pause(NamedTuple):
    """What is held back. name: of the pool or tenant; "" for the queue."""

    kind: PauseKind
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".rstrip()


THE_QUEUE = Pause("queue")
"""Everything that has not started."""


@dataclass(frozen=True, slots=True)
class SetPause(ServerScoped):
    """Pause, or resume: both say how it is to be, and may be said again."""

    writes: ClassVar[bool] = True

    pause: Pause
    paused: bool

    def execute(self, connection: sa.Connection) -> Mapping[Pause, float]:
        """Return what is paused after that, each with the Unix time since when."""
        kind, name = self.pause
        if self.paused:
            insert_once(connection, PAUSES, ("kind", "name"), [{"kind": kind, "name": name, "since_s": time.time()}])
        else:
            connection.execute(sa.delete(PAUSES).where((PAUSES.c.kind == kind) & (PAUSES.c.name == name)))
        return AllPauses().execute(connection)


@dataclass(frozen=True, slots=True)
class AllPauses(ServerScoped):
    """What is paused."""

    writes: ClassVar[bool] = False

    def execute(self, connection: sa.Connection) -> Mapping[Pause, float]:
        """Return it, each with the Unix time since when."""
        rows = connection.execute(sa.select(PAUSES).order_by(PAUSES.c.since_s, PAUSES.c.kind, PAUSES.c.name))
        return {Pause(row.kind, row.name): float(row.since_s) for row in rows}
