"""Deletes history and files that exceed their retention bounds, in portions, in the background and under the lease.

A deletion that a process leaves halfway is found again, as its files still exceed the bounds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from serve_app import log
from serve_app.scheduler.durability.lease import SchedulerLease
from serve_app.scheduler.housekeeping.rounds import repeat
from serve_app.store.database.jobs import Jobs
from serve_app.store.files.store import Area, FileRef, WholeStore
from serve_app.store.retention.named_files import NeededFiles, StoredPath, ref_of
from serve_app.store.retention.removal import PORTION
from serve_app.store.retention.retention import LYING, EndedTenants, ExpireJobs, HistoryCut, files_beyond
from serve_app.store.retention.rules import RetentionRules

_log = log.get("scheduler")


class Expiry:
    """Applies the retention rules. forgotten: called with jobs that are deleted. forget_files: removes results that
    name files. deleted: called with each deleted file. in_database: as `SchedulerLease`'s.
    """

    def __init__(
        self,
        rules: RetentionRules,
        jobs: Jobs,
        store: WholeStore,
        lease: SchedulerLease,
        in_database: Callable[..., Awaitable[Any]],
        *,
        forgotten: Callable[[Sequence[str]], Awaitable[None]],
        forget_files: Callable[[Sequence[StoredPath]], Awaitable[None]],
        deleted: Callable[[FileRef], None] = lambda ref: None,
    ) -> None:
        self._rules = rules
        self._jobs = jobs
        self._store = store
        self._lease = lease
        self._in_database = in_database
        self._forgotten = forgotten
        self._forget_files = forget_files
        self._deleted = deleted

    async def run(self) -> None:
        """Apply the rules at their interval, until cancelled."""
        await repeat(self.once, self._rules.every_s, "what is beyond its retention stays for now")

    async def once(self) -> None:
        """Delete everything that exceeds its bounds."""
        if self._rules.concern("history"):
            for tenant in await self._read(EndedTenants()):
                await self._history(tenant)
        for area, kinds in LYING.items():
            if self._rules.concern(*kinds):
                await self._files(area)

    async def _history(self, tenant: str) -> None:
        now_s, bounds = time.time(), self._rules.bounds("history", tenant)
        if not bounds.bound or (until_seq := await self._read(HistoryCut(tenant, bounds, now_s))) is None:
            return
        count, gone = 0, ("",) * PORTION
        while len(gone) == PORTION:
            expire = ExpireJobs(tenant, until_seq, now_s)
            gone = await self._in_database(self._jobs.query, self._lease.epoch, expire)
            if gone:
                await self._forgotten(gone)
            count += len(gone)
        if count:
            _log.info("%d jobs%s are beyond the retention of history and gone", count, _of(tenant))

    async def _files(self, area: Area) -> None:
        count, portions = 0, files_beyond(self._store, area, self._rules)
        while (portion := await asyncio.to_thread(next, portions, None)) is not None:
            await self._in_database(self._jobs.renew, self._lease.epoch)
            needed = await self._read(NeededFiles(portion))
            gone = [place for place in portion if place not in needed]
            await self._forget_files(gone)
            await asyncio.to_thread(self._delete, iter(gone))
            count += len(gone)
        if count:
            _log.info("%d files of %s are beyond their retention and gone", count, area)

    def _delete(self, places: Iterator[StoredPath]) -> None:
        for place in places:
            self._store.delete(ref := ref_of(place))
            self._deleted(ref)

    async def _read(self, query: Any) -> Any:
        """Run a query in a thread other than the writer's."""
        return await asyncio.to_thread(self._jobs.query, self._lease.epoch, query)


def _of(tenant: str) -> str:
    return f" of {tenant}" if tenant else ""
