"""Starts the scheduler of one server, and a successor when it loses the lease.

A scheduler that loses the lease to another server is closed. Its successor waits until that server's lease has expired,
then continues from the database. A failed start is retried after AGAIN_S, not for every call.
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
"""The delay after a failed start."""
_log = log.get("scheduler")


class Succession:
    """The current scheduler. make: builds one without starting it; raises what opening the database raises."""

    def __init__(self, make: Callable[[], Scheduler]) -> None:
        self._make = make
        self._starting = asyncio.Lock()
        self._waiting: asyncio.Task[None] | None = None
        self._failure = ""
        self._failed_s = float("-inf")
        self.current: Scheduler | None = None

    async def scheduler(self) -> Scheduler:
        """Return the running scheduler, starting one if there is none.

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
        """Close the scheduler and stop waiting for the lease."""
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
            if str(error) not in self._failure:  # log it once, not at every try
                _log.error("the scheduler cannot start: %s", error)
            self._failure, self._failed_s = f"the scheduler cannot start: {error}", time.monotonic()
            raise NotReadyError(self._failure, retry_after_s=2) from error
        self._failure = ""
        return scheduler
