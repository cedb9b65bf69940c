"""A scheduler's time in office: from taking the lease until a newer scheduler has it, and waiting for it to be free.

The holder stamps the lease. Who waits compares stamps by a clock of its own, so that clocks of hosts may differ.
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
"""How often the holder stamps the lease; what an older scheduler may take to notice that it has lost it."""
EXPIRES_S = 20.0
"""A lease that has not been stamped for so long is free."""
LOST = "a newer scheduler has taken over this database; this one goes on when that has ended"
_log = log.get("scheduler")


class SchedulerLease:
    """One a scheduler's life. holder: the server it belongs to. in_database: runs a function beside the event loop."""

    def __init__(self, jobs: Jobs, holder: str, in_database: Callable[..., Awaitable[Any]]) -> None:
        self._jobs = jobs
        self._holder = holder
        self._in_database = in_database
        self.epoch = 0
        self.started_s = 0.0
        self.anew = False
        self.fenced = asyncio.Event()
        """Set once it is over: a newer scheduler holds the lease, or this one has been told to go."""

    async def take(self) -> None:
        """Take the lease, whoever had it; `anew` if the server has just started, and its scheduler not merely again."""
        earlier_s = await self._in_database(self._jobs.started_s)
        self.epoch = await self._in_database(self._jobs.acquire, self._holder)
        self.started_s = await self._in_database(self._jobs.started_s)
        self.anew = self.started_s != earlier_s

    async def keep(self) -> None:
        """Stamp the lease until it is lost, which is noticed here even when nothing else is written."""
        while not self.fenced.is_set():
            await asyncio.sleep(RENEW_S)
            try:
                await persistently(lambda: self._in_database(self._jobs.renew, self.epoch))
            except StaleEpochError as error:
                self.lose(error)

    def lose(self, error: StaleEpochError) -> None:
        """Take in that a newer scheduler holds the lease."""
        if not self.fenced.is_set():
            self.fenced.set()
            _log.warning("%s; %s", error, LOST)

    async def wait_until_expired(self) -> None:
        """Return once whoever holds the lease has not stamped it for EXPIRES_S."""
        seen, since_s = None, time.monotonic()
        while seen is None or time.monotonic() - since_s < EXPIRES_S:
            try:
                heartbeat = await self._in_database(self._jobs.heartbeat)
            except DatabaseAwayError:
                heartbeat = None  # what cannot be seen may live
            if heartbeat != seen or heartbeat is None:
                seen, since_s = heartbeat, time.monotonic()
            await asyncio.sleep(min(RENEW_S, EXPIRES_S) / 4)

    def check(self) -> None:
        """Check that it is not over. Errors: DrainingError."""
        if self.fenced.is_set():
            raise DrainingError(LOST, retry_after_s=2)
