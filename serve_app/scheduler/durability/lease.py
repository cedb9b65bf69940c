"""The lease of the scheduler on its database: taking it, renewing it, and waiting until another's has expired.

The holder renews the lease. A waiting scheduler measures the time between renewals by its own clock, so the clocks of
hosts may differ. One that was deposed for nobody, as by a move of a tenant, takes it at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from serve_app import log
from serve_app.errors import DatabaseAwayError, DrainingError, StaleEpochError
from serve_app.scheduler.durability.writer import persistently
from serve_app.store.database.jobs import Jobs

RENEW_S = 5.0
"""The interval of renewals, within which a deposed scheduler notices that it has lost the lease."""
EXPIRES_S = 20.0
"""The time without a renewal after which a lease has expired."""
LOST = "a newer scheduler has taken over this database; this one goes on when that has ended"
_log = log.get("scheduler")


class SchedulerLease:
    """The lease of one scheduler. holder: its server. in_database: runs a function in the database's thread."""

    def __init__(self, jobs: Jobs, holder: str, in_database: Callable[..., Awaitable[Any]]) -> None:
        self._jobs = jobs
        self._holder = holder
        self._in_database = in_database
        self.epoch = 0
        self.started_s = 0.0
        self.server_started = False
        self.fenced = asyncio.Event()
        """Set once a newer scheduler holds the lease, or this one is retired."""

    async def take(self) -> None:
        """Take the lease from any holder. Sets `server_started` unless only the scheduler restarted."""
        earlier_s = await self._in_database(self._jobs.started_s)
        self.epoch = await self._in_database(self._jobs.acquire, self._holder)
        self.started_s = await self._in_database(self._jobs.started_s)
        self.server_started = self.started_s != earlier_s

    async def keep(self) -> None:
        """Renew the lease until it is lost, which is noticed here even if nothing else is written."""
        while not self.fenced.is_set():
            await asyncio.sleep(RENEW_S)
            try:
                await persistently(lambda: self._in_database(self._jobs.renew, self.epoch))
            except StaleEpochError as error:
                self.lose(error)

    def lose(self, error: StaleEpochError) -> None:
        """Note that a newer scheduler holds the lease."""
        if not self.fenced.is_set():
            self.fenced.set()
            _log.warning("%s; %s", error, LOST)

    async def wait_until_expired(self) -> None:
        """Return once nobody holds the lease, or it has not been renewed for EXPIRES_S."""
        seen, since_s = None, time.monotonic()
        while seen is None or time.monotonic() - since_s < EXPIRES_S:
            try:
                if await self._in_database(self._jobs.vacant):
                    return
                heartbeat = await self._in_database(self._jobs.heartbeat)
            except DatabaseAwayError:
                heartbeat = None  # an unreachable lease may be in use
            if heartbeat != seen or heartbeat is None:
                seen, since_s = heartbeat, time.monotonic()
            await asyncio.sleep(min(RENEW_S, EXPIRES_S) / 4)

    def check(self) -> None:
        """Check that the lease is not lost. Errors: DrainingError."""
        if self.fenced.is_set():
            raise DrainingError(LOST, retry_after_s=2)
