"""A tenant's store that counts written and deleted bytes, and enforces the quota of bytes.

Synchronous, and queries the database: never call it on an event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from serve_app.errors import FileMissingError
from serve_app.store.files.store import Area, Content, FileRef, FileStat, Store, pieces
from serve_app.store.tenants.stored_bytes import ClaimBytes, NoteFiles, name_of, new_claim, refusal
from serve_app.store.tenants.tenants import placed

Ask = Callable[[Any], Any]
"""Runs a database query for the tenant."""


class Meter:
    """The meter of one tenant in one process. most: its quota of bytes, None for no limit."""

    def __init__(self, ask: Ask, most: int | None) -> None:
        self._ask, self._most = ask, most

    def unbounded(self) -> Meter:
        """Return a meter without count and limit."""
        return Meter(self._ask, None)

    def write(self, name: str, size: int, write: Callable[[], None], *, replace: bool) -> None:
        """Write a file of `size` bytes. name: as `name_of`; replace: whether one may be there.

        Errors: QuotaError before anything is written; and `write`'s.
        """
        if self._most is None:
            write()
            self.note(name, size)
            return
        claim = new_claim()
        granted, stored = self._ask(ClaimBytes(claim, size, self._most, name if replace else None))
        if not granted:
            raise refusal(self._most, stored, size)
        try:
            write()
        except BaseException:
            self.note(claim, None)
            raise
        self._ask(NoteFiles({name: size, claim: None}))

    def note(self, name: str, size: int | None) -> None:
        """Count a file by its size, or with None its deletion."""
        self._ask(NoteFiles({name: size}))


class MeteredStore:
    """A tenant's store with its meter."""

    def __init__(self, store: Store, tenant: str, meter: Meter) -> None:
        self._store, self._tenant, self._meter = store, tenant, meter

    def unbounded(self) -> MeteredStore:
        """Return it without a quota."""
        return MeteredStore(self._store, self._tenant, self._meter.unbounded())

    def stat(self, ref: FileRef) -> FileStat:
        """As `Store.stat`."""
        return self._store.stat(ref)

    def open(self, ref: FileRef, span: range | None = None) -> BinaryIO:
        """As `Store.open`."""
        return self._store.open(ref, span)

    def write(self, ref: FileRef, data: Content, *, replace: bool = True) -> None:
        """As `Store.write`. Errors: also QuotaError."""
        if not replace and self._is_there(ref):
            raise FileExistsError(ref.path)
        size = sum(piece.nbytes if isinstance(piece, memoryview) else len(piece) for piece in pieces(data))
        self._meter.write(self._name(ref), size, lambda: self._store.write(ref, data, replace=replace), replace=replace)

    def names(self, area: Area, subfolder: str = "") -> Iterator[str]:
        """As `Store.names`."""
        return self._store.names(area, subfolder)

    def files(self, area: Area, subfolder: str = "") -> Iterator[tuple[FileRef, float]]:
        """As `Store.files`."""
        return self._store.files(area, subfolder)

    def delete(self, ref: FileRef) -> None:
        """As `Store.delete`."""
        self._store.delete(ref)
        self._meter.note(self._name(ref), None)

    def link(self, ref: FileRef, content_type: str, disposition: str) -> str | None:
        """As `Store.link`."""
        return self._store.link(ref, content_type, disposition)

    def _is_there(self, ref: FileRef) -> bool:
        try:
            self._store.stat(ref)
        except FileMissingError:
            return False
        return True

    def _name(self, ref: FileRef) -> str:
        return name_of(ref.area, placed(ref, self._tenant).path)
