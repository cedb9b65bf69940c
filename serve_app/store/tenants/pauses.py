"""Pauses of the queue, of a pool's jobs or a tenant's, and drains of replicas and hosts; stored until undone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, TypeAlias

import sqlalchemy as sa

from serve_app.store.database.insert_once import insert_once
from serve_app.store.database.query_scope import ServerScoped
from serve_app.store.database.schema import PAUSES

PauseKind: TypeAlias = Literal["queue", "pool", "tenant", "replica", "host"]
KINDS: tuple[PauseKind, ...] = ("queue", "pool", "tenant")
"""Of pauses, after which no more jobs start."""
DRAINS: tuple[PauseKind, ...] = ("replica", "host")
"""Of drains, after which a replica, or all of a host's, takes no more tasks."""


class Pause(NamedTuple):
    """A pause or a drain. name: of the pool, tenant, replica or host; "" for the queue."""

    kind: PauseKind
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".rstrip()

    @property
    def drains(self) -> bool:
        """Whether it is a drain."""
        return self.kind in DRAINS


THE_QUEUE = Pause("queue")
"""The pause of all jobs that have not started."""


@dataclass(frozen=True, slots=True)
class SetPause(ServerScoped):
    """Pauses or resumes; idempotent."""

    writes: ClassVar[bool] = True

    pause: Pause
    paused: bool

    def execute(self, connection: sa.Connection) -> Mapping[Pause, float]:
        """Return the resulting pauses, each with its Unix time."""
        kind, name = self.pause
        if self.paused:
            insert_once(connection, PAUSES, ("kind", "name"), [{"kind": kind, "name": name, "since_s": time.time()}])
        else:
            connection.execute(sa.delete(PAUSES).where((PAUSES.c.kind == kind) & (PAUSES.c.name == name)))
        return AllPauses().execute(connection)


@dataclass(frozen=True, slots=True)
class AllPauses(ServerScoped):
    """Lists the pauses."""

    writes: ClassVar[bool] = False

    def execute(self, connection: sa.Connection) -> Mapping[Pause, float]:
        """Return the pauses, each with its Unix time."""
        rows = connection.execute(sa.select(PAUSES).order_by(PAUSES.c.since_s, PAUSES.c.kind, PAUSES.c.name))
        return {Pause(row.kind, row.name): float(row.since_s) for row in rows}
