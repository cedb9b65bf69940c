"""Sweeps orphaned files from the store, in the background and under the lease."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import chain
from typing import Any

from serve_app.config.results import ResultsConfig
from serve_app.scheduler.durability.lease import SchedulerLease
from serve_app.scheduler.housekeeping.rounds import repeat
from serve_app.store.database.jobs import Jobs
from serve_app.store.files.reserved import shown
from serve_app.store.files.store import FileRef
from serve_app.store.page.assets import ExpireAssets
from serve_app.store.retention.removal import Doomed, SettleDoomed
from serve_app.store.retention.sweep import BATCH_SIZE, SETTLED_S, Sweep

EVERY_S = 60.0
"""The interval of sweeps."""
LOOK_S = 3600.0
"""The interval at which whole areas are searched for half-written and old files."""


class Tidying:
    """The sweeps of one store. results: the cached ui dicts, whose files stay. in_database: as `SchedulerLease`'s.

    stored: which results of nodes outlive a restart, and so the previews that they name; None: none does.
    """

    def __init__(
        self,
        sweep: Sweep,
        jobs: Jobs,
        lease: SchedulerLease,
        results: Callable[[], Iterable[Any]],
        in_database: Callable[..., Awaitable[Any]],
        stored: ResultsConfig | None = None,
    ) -> None:
        self._stored = stored
        self._sweep = sweep
        self._jobs = jobs
        self._lease = lease
        self._results = results
        self._in_database = in_database
        self._dooming = asyncio.Lock()
        self._looked_s = -math.inf

    async def run(self) -> None:
        """Sweep until cancelled."""
        started_s = self._lease.started_s if self._lease.server_started else None

        async def sweep() -> None:
            nonlocal started_s
            await self.once(started_s)
            started_s = None

        await repeat(sweep, EVERY_S, "files that nobody needs stay for now")

    async def once(self, started_s: float | None = None) -> None:
        """Sweep once. started_s: the server's start, at the first sweep after it."""
        needed = await asyncio.to_thread(self._jobs.outputs_of_unfinished)
        # Whole areas are listed for it.
        if started_s is not None or time.monotonic() >= self._looked_s + LOOK_S:
            await asyncio.to_thread(self._sweep.half_written)
            await asyncio.to_thread(self._sweep.run_states)
            await asyncio.to_thread(self._sweep.results, self._stored or ResultsConfig(max_bytes=0))
            await asyncio.to_thread(self._sweep.abandoned_uploads)
            self._looked_s = time.monotonic()
        expired = await self._in_database(self._jobs.query, self._lease.epoch, ExpireAssets())
        await asyncio.to_thread(self._sweep.delete, expired)
        await self.doomed()
        await asyncio.to_thread(self._sweep.previews, None if self._stored else started_s, chain(needed, self._kept()))
        while True:
            await self._in_database(self._jobs.renew, self._lease.epoch)
            before_s = time.time() - SETTLED_S
            done = await asyncio.to_thread(self._sweep.unrecorded, before_s, self._kept())
            if done:
                await self._in_database(self._jobs.settle, self._lease.epoch, done)
            if len(done) < BATCH_SIZE:
                return

    async def doomed(self) -> None:
        """Delete the files of deleted jobs, unless they are in use."""
        async with self._dooming:
            while True:
                files = await self._in_database(self._jobs.query, self._lease.epoch, Doomed())
                if not files:
                    return
                await asyncio.to_thread(self._sweep.doomed, files)
                await self._in_database(self._jobs.query, self._lease.epoch, SettleDoomed(files))

    def _kept(self) -> Iterator[FileRef]:
        """Yield, in any thread, the files of the results that are cached at this call."""
        return (ref for ui in self._results() for ref in shown(ui))
