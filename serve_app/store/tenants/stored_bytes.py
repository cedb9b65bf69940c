"""The stored bytes of each tenant: a row for each of its files, and their sum.

A write or deletion records the file's size afterwards, which is idempotent. Unrecorded files, such as a node pack's
own, are found when all files are listed (`scheduler/housekeeping/storage_count.py`). An upload claims its bytes before
it is written, so that two concurrent ones cannot exceed the quota together.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from serve_app.errors import QuotaError
from serve_app.limits import refused
from serve_app.store.database.insert_once import insert_once
from serve_app.store.database.query_scope import ServerScoped, TenantScoped
from serve_app.store.database.schema import STORED_BYTES, STORED_FILES

CLAIM_S = 3600.0
"""The life of a claim, longer than any upload."""
RETRY_S = 60
"""The retry delay for a limit that deletion and retention relax."""
BATCH = 500
"""The rows of one statement."""


def name_of(area: str, path: str) -> str:
    """Return a file's key in the table, of bounded length."""
    return hashlib.sha256(f"{area}/{path}".encode(errors="replace")).hexdigest()


def new_claim() -> str:
    """Return a key that no file has."""
    return f"claim {secrets.token_hex(16)}"


def refusal(most: int, stored: int, size: int = 0) -> QuotaError:
    """Return the refusal of `size` more bytes, or of a job, to a tenant that has `stored` bytes; counts it."""
    refused("quotas.bytes_stored")
    more = f", and this is {size} more" if size else ""
    reason = f"this tenant has stored {stored} bytes{more}; its quota 'bytes_stored' allows {most}"
    return QuotaError(reason, RETRY_S, "bytes_stored", most, max(0, most - stored))


class Claimed(NamedTuple):
    """stored: what the tenant has stored beside it."""

    granted: bool
    stored: int


@dataclass(frozen=True, slots=True)
class ClaimBytes(TenantScoped):
    """Claims bytes that are about to be written, if the quota allows them. replaced: the file in whose place they go,
    if any.
    """

    writes: ClassVar[bool] = True

    claim: str
    size: int
    most: int
    replaced: str | None = None
    tenant: str = ""

    def execute(self, connection: sa.Connection) -> Claimed:
        """Return whether the quota allows them."""
        named = [self.claim, *([] if self.replaced is None else [self.replaced])]
        there = _sizes(connection, named)
        stored = _total(connection, self.tenant) - there.get(self.claim, 0)
        more = self.size - there.get(self.replaced or "", 0)
        if more > 0 and stored + more > self.most:
            return Claimed(False, stored)
        _put(connection, self.tenant, {self.claim: max(0, more)}, time.time() + CLAIM_S)
        return Claimed(True, stored)


@dataclass(frozen=True, slots=True)
class NoteFiles(TenantScoped):
    """Records sizes of a tenant's files. sizes: bytes by `name_of`; None for a deleted file."""

    writes: ClassVar[bool] = True

    sizes: Mapping[str, int | None]
    tenant: str = ""

    def execute(self, connection: sa.Connection) -> None:
        """Change the rows and the sum."""
        _put(connection, self.tenant, self.sizes, time.time())


@dataclass(frozen=True, slots=True)
class ForgetUnseen(ServerScoped):
    """Deletes rows not recorded since a time, and recomputes the sums; with `inf`, deletes all."""

    writes: ClassVar[bool] = True

    before_s: float

    def execute(self, connection: sa.Connection) -> None:
        """Delete their rows."""
        connection.execute(sa.delete(STORED_FILES).where(STORED_FILES.c.seen_s < self.before_s))
        connection.execute(sa.delete(STORED_BYTES))
        added = sa.select(STORED_FILES.c.tenant, sa.func.sum(STORED_FILES.c.size)).group_by(STORED_FILES.c.tenant)
        connection.execute(sa.insert(STORED_BYTES).from_select(["tenant", "bytes"], added))


@dataclass(frozen=True, slots=True)
class StoredBytes(TenantScoped):
    """Reads the stored bytes of a tenant."""

    writes: ClassVar[bool] = False

    tenant: str = ""

    def execute(self, connection: sa.Connection) -> int:
        """Return the bytes."""
        return _total(connection, self.tenant)


def totals(connection: sa.Connection) -> dict[str, int]:
    """Return the stored bytes by tenant."""
    return {row.tenant: int(row.bytes) for row in connection.execute(sa.select(STORED_BYTES)) if row.bytes}


def _total(connection: sa.Connection, tenant: str) -> int:
    found = connection.execute(sa.select(STORED_BYTES.c.bytes).where(STORED_BYTES.c.tenant == tenant)).scalar()
    return int(found or 0)


def _sizes(connection: sa.Connection, names: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for some in _batches(tuple(names)):
        rows = connection.execute(sa.select(STORED_FILES).where(STORED_FILES.c.name.in_(some)))
        found.update({row.name: int(row.size) for row in rows})
    return found


def _put(connection: sa.Connection, tenant: str, sizes: Mapping[str, int | None], seen_s: float) -> None:
    before = _sizes(connection, sizes)
    for some in _batches(tuple(before)):
        connection.execute(sa.delete(STORED_FILES).where(STORED_FILES.c.name.in_(some)))
    there = {name: size for name, size in sizes.items() if size is not None}
    rows = [{"name": name, "tenant": tenant, "size": size, "seen_s": seen_s} for name, size in there.items()]
    insert_once(connection, STORED_FILES, ("name",), rows)
    if more := sum(there.values()) - sum(before.values()):
        insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        adding = insert(STORED_BYTES).values(tenant=tenant, bytes=more)
        summed = STORED_BYTES.c.bytes + adding.excluded.bytes
        connection.execute(adding.on_conflict_do_update(index_elements=["tenant"], set_={"bytes": summed}))


def _batches(names: Sequence[str]) -> Iterable[Sequence[str]]:
    return (names[start : start + BATCH] for start in range(0, len(names), BATCH))
