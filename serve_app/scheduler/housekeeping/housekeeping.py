"""The background work on a server's files: sweeps, retention, and the count of stored bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serve_app.config.results import ResultsConfig
from serve_app.scheduler.durability.lease import SchedulerLease
from serve_app.scheduler.housekeeping.expiry import Expiry
from serve_app.scheduler.housekeeping.storage_count import StorageCount
from serve_app.scheduler.housekeeping.tidying import Tidying
from serve_app.store.database.jobs import Jobs
from serve_app.store.files.store import WholeStore
from serve_app.store.page.userdata import UserData
from serve_app.store.retention.named_files import StoredPath
from serve_app.store.retention.rules import KINDS, RetentionRules
from serve_app.store.retention.sweep import Sweep


@dataclass(frozen=True, slots=True)
class KeptFiles:
    """The files of a server. temp_age_s: the largest age of previews. user_data: also counted.

    results: which results of nodes outlive a restart; None: none does.
    """

    store: WholeStore
    temp_age_s: float
    retention: RetentionRules = field(default_factory=RetentionRules)
    user_data: UserData | None = None
    results: ResultsConfig | None = None


class Housekeeping:
    """Runs that work. files: of the server. count_bytes: whether any tenant has a quota of bytes. in_database: as
    `SchedulerLease`'s. results: as `Tidying`'s. forgotten, forget_files: as `Expiry`'s.
    """

    def __init__(
        self,
        files: KeptFiles,
        jobs: Jobs,
        lease: SchedulerLease,
        in_database: Callable[..., Awaitable[Any]],
        *,
        count_bytes: bool,
        results: Callable[[], Iterable[Any]],
        forgotten: Callable[[Sequence[str]], Awaitable[None]],
        forget_files: Callable[[Sequence[StoredPath]], Awaitable[None]],
    ) -> None:
        store = files.store
        self._count = StorageCount(count_bytes, jobs, store, files.user_data, lease, in_database)
        deleted = self._count.deleted
        self._tidying = Tidying(
            Sweep(jobs, store, files.temp_age_s, deleted), jobs, lease, results, in_database, files.results
        )
        self._expiry: Expiry | None = None
        if files.retention.concern(*KINDS):
            self._expiry = Expiry(
                files.retention,
                jobs,
                store,
                lease,
                in_database,
                forgotten=forgotten,
                forget_files=forget_files,
                deleted=deleted,
            )

    def start(self) -> list[asyncio.Task[None]]:
        """Start the background tasks and return them; they run until cancelled."""
        works = [self._count.run, self._tidying.run]
        if self._expiry is not None:
            works.append(self._expiry.run)
        return [asyncio.create_task(work()) for work in works]

    def saved(self, ui: Mapping[str, Any], tenant: str) -> None:
        """Count the files of a tenant's ui dict."""
        self._count.saved(ui, tenant)

    async def doomed(self) -> None:
        """Delete the files of deleted jobs, unless they are in use."""
        await self._tidying.doomed()
