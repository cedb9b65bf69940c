"""Counts the bytes that tenants have stored, if any has a quota of bytes, from the files that jobs save and that are
deleted.

All files are listed at the scheduler's start and every hour, which corrects the count.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from itertools import groupby, islice
from typing import Any

from serve_app.errors import FileMissingError
from serve_app.scheduler.durability.lease import SchedulerLease
from serve_app.scheduler.housekeeping.rounds import repeat
from serve_app.store.database.jobs import Jobs
from serve_app.store.database.queries import Query
from serve_app.store.files.atomic_write import UNFINISHED
from serve_app.store.files.reserved import shown
from serve_app.store.files.store import AREAS, FileRef, WholeStore
from serve_app.store.page.userdata import UserData
from serve_app.store.retention.named_files import StoredPath, places, ref_of, tenant_of
from serve_app.store.retention.removal import PORTION
from serve_app.store.tenants.stored_bytes import ForgetUnseen, NoteFiles, name_of

EVERY_S = 1.0
"""The interval at which changes are written."""
COUNT_S = 3600.0
"""The interval at which all files are listed."""


class StorageCount:
    """Counts stored bytes. needed: whether any tenant has a quota of bytes. in_database: as `SchedulerLease`'s."""

    def __init__(
        self,
        needed: bool,
        jobs: Jobs,
        store: WholeStore,
        user_data: UserData | None,
        lease: SchedulerLease,
        in_database: Callable[..., Awaitable[Any]],
    ) -> None:
        self._needed = needed
        self._jobs = jobs
        self._store = store
        self._user_data = user_data
        self._lease = lease
        self._in_database = in_database
        self._changed: deque[StoredPath] = deque()
        self._counted_s = -math.inf

    def saved(self, ui: Mapping[str, Any], tenant: str) -> None:
        """Count the files of a tenant's ui dict."""
        if self._needed and tenant:
            self._changed.extend(places(shown(ui), tenant))

    def deleted(self, ref: FileRef) -> None:
        """Count a deleted file; from any thread."""
        if self._needed and tenant_of(place := (ref.area, ref.path)):
            self._changed.append(place)

    async def run(self) -> None:
        """Count until cancelled. Without a quota of bytes, delete an earlier count."""
        work = self.once if self._needed else self._forget
        await repeat(work, EVERY_S, "what tenants have stored is not counted for now")

    async def once(self) -> None:
        """Write the changes, and list all files if that is due."""
        while self._changed:
            portion = [self._changed.popleft() for _ in range(min(PORTION, len(self._changed)))]
            try:
                sizes = await asyncio.to_thread(self._sizes, dict.fromkeys(portion))
                await self._note(sizes)
            except BaseException:
                self._changed.extend(portion)
                raise
        if time.monotonic() >= self._counted_s + COUNT_S:
            await self._count()
            self._counted_s = time.monotonic()

    async def _forget(self) -> bool:
        await self._ask(ForgetUnseen(math.inf))
        return True

    async def _count(self) -> None:
        started_s, found = time.time(), self._all()
        while portion := await asyncio.to_thread(lambda: list(islice(found, PORTION))):
            await self._note(portion)
        await self._ask(ForgetUnseen(started_s))

    async def _note(self, sizes: Iterable[tuple[str, str, int | None]]) -> None:
        for tenant, files in groupby(sizes, key=lambda each: each[0]):
            await self._ask(NoteFiles({name: size for _, name, size in files}, tenant))

    async def _ask(self, query: Query[Any]) -> None:
        await self._in_database(self._jobs.query, self._lease.epoch, query)

    def _sizes(self, changed: Iterable[StoredPath]) -> list[tuple[str, str, int | None]]:
        """Return (tenant, name in the count, size or None) of each file."""
        found: list[tuple[str, str, int | None]] = []
        for place in changed:
            size: int | None = None
            with contextlib.suppress(FileMissingError):
                size = self._store.stat(ref_of(place)).size
            found.append((tenant_of(place), name_of(*place), size))
        return found

    def _all(self) -> Iterator[tuple[str, str, int]]:
        """Yield the files of every tenant, as `_sizes`."""
        for area in AREAS:
            for ref, size, _ in self._store.inventory(area):
                if (tenant := tenant_of((area, ref.path))) and not ref.filename.endswith(UNFINISHED):
                    yield tenant, name_of(area, ref.path), size
        if self._user_data is not None:
            yield from self._user_data.counted()
