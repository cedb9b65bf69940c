"""The schedulers of one server, one after another: who answers now, and what is answered while none can.

A scheduler that loses the lease to another server's is closed. Another one is made, which waits until that server has
gone and then works on from the database. One that cannot start is tried again, not for every call.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from serve_app import log
from serve_app.errors import DrainingError, NotReadyError, ServeAppError
from serve_app.scheduler.durability.lease import LOST
from serve_app.scheduler.scheduler import Scheduler

AGAIN_S = 2.0
"""How long after a failed start another one is tried."""
_log = log.get("scheduler")


class Succession:
    """make: builds a scheduler over the database, not started yet; may raise what opening the database does."""

    def __init__(self, make: Callable[[], Scheduler]) -> None:
        self._make = make
        self._starting = asyncio.Lock()
        self._waiting: asyncio.Task[None] | None = None
        self._failure = ""
        self._failed_s = float("-inf")
        self.current: Scheduler | None = None

    async def scheduler(self) -> Scheduler:
        """Return the scheduler that works, and start one if there is none.

        Errors: DrainingError while another server has the lease; NotReadyError with the reason that none can start.
        """
        if self.current is None or self.current.fenced.is_set():
            async with self._starting:
                if self.current is not None and self.current.fenced.is_set():
                    lost, self.current = self.current, None
                    self._waiting = asyncio.create_task(self._wait(lost))
                if self._waiting is not None:
                    raise DrainingError(LOST, retry_after_s=5)
                if self.current is None:
                    self.current = await self._started(waiting=False)
        return self.current

    async def close(self) -> None:
        """Stop working, and waiting."""
        if self._waiting is not None:
            self._waiting.cancel()
            await asyncio.gather(self._waiting, return_exceptions=True)
        if self.current is not None:
            await self.current.close()

    async def _wait(self, lost: Scheduler) -> None:
        """Start the next scheduler once the lease is free."""
        await lost.close()
        while self._waiting is not None:
            with contextlib.suppress(NotReadyError):
                self.current = await self._started(waiting=True)
                self._waiting = None
                return
            await asyncio.sleep(AGAIN_S)

    async def _started(self, *, waiting: bool) -> Scheduler:
        if time.monotonic() - self._failed_s < AGAIN_S:
            raise NotReadyError(self._failure, retry_after_s=2)
        scheduler = None
        try:
            scheduler = await asyncio.to_thread(self._make)
            if waiting:
                await scheduler.wait_until_expired()
            await scheduler.start()
        except BaseException as error:
            if scheduler is not None:
                await scheduler.close()
            if not isinstance(error, ServeAppError):
                raise
            if str(error) not in self._failure:  # once, however often it is tried
                _log.error("the scheduler cannot start: %s", error)
            self._failure, self._failed_s = f"the scheduler cannot start: {error}", time.monotonic()
            raise NotReadyError(self._failure, retry_after_s=2) from error
        self._failure = ""
        return scheduler
