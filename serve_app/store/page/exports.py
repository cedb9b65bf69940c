"""Exports: lists of files to download as one archive, stored for a while.

An export is a list; its archive is streamed (`archive.py`), so nothing is stored. Each belongs to one tenant. A new
one replaces those that are too old or too many.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import sqlalchemy as sa

from serve_app.store.database.insert_once import insert_once
from serve_app.store.database.query_scope import TenantScoped
from serve_app.store.database.schema import EXPORTS
from serve_app.store.files.archive import ArchiveMember
from serve_app.store.files.store import AREAS, FileRef

KEPT_S = 86_400.0
"""The life of an export."""
KEPT = 20
"""The most exports of a tenant."""


@dataclass(frozen=True, slots=True)
class Export:
    """A list of files to download. members: of the archive. missing: requested ids that do not exist. created_s: Unix
    time.
    """

    export_id: str
    created_s: float
    members: tuple[ArchiveMember, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KeepExport(TenantScoped):
    """Stores an export."""

    writes: ClassVar[bool] = True

    export: Export
    tenant: str = ""

    def execute(self, connection: sa.Connection) -> None:
        """Insert it, and delete expired ones."""
        export = self.export
        members = [[*_place(member.ref), member.name, member.size, member.changed_s] for member in export.members]
        row = {
            "export_id": export.export_id,
            "tenant": self.tenant,
            "created_s": export.created_s,
            "members": json.dumps(members),
            "missing": json.dumps(export.missing),
        }
        insert_once(connection, EXPORTS, ("export_id",), [row])
        own = EXPORTS.c.tenant == self.tenant
        newest = sa.select(EXPORTS.c.export_id).where(own).order_by(EXPORTS.c.created_s.desc()).limit(KEPT)
        kept = connection.execute(newest).scalars().all()
        over = own & EXPORTS.c.export_id.not_in(kept)
        connection.execute(sa.delete(EXPORTS).where(over | (EXPORTS.c.created_s < time.time() - KEPT_S)))


@dataclass(frozen=True, slots=True)
class FindExport(TenantScoped):
    """Finds a tenant's export by its id."""

    writes: ClassVar[bool] = False

    export_id: str
    tenant: str = ""

    def execute(self, connection: sa.Connection) -> Export | None:
        """Return the export, None if it is absent or expired."""
        wanted = (EXPORTS.c.export_id == self.export_id) & (EXPORTS.c.tenant == self.tenant)
        row = connection.execute(
            sa.select(EXPORTS).where(wanted & (EXPORTS.c.created_s >= time.time() - KEPT_S))
        ).first()
        if row is None:
            return None
        members = tuple(_member(*values) for values in json.loads(row.members))
        return Export(row.export_id, row.created_s, members, tuple(json.loads(row.missing)))


def _place(ref: FileRef) -> Sequence[Any]:
    return ref.area, ref.path


def _member(area: str, path: str, name: str, size: int, changed_s: float) -> ArchiveMember:
    subfolder, _, filename = path.rpartition("/")
    return ArchiveMember(
        FileRef(next(known for known in AREAS if known == area), subfolder, filename), name, size, changed_s
    )
