"""Checks that the database takes commits, by committing one row, and that its file is not corrupt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from serve_app.errors import DatabaseAwayError, NotReadyError
from serve_app.scheduler.durability.writer import Writer
from serve_app.store.database.jobs import Jobs

FRESH_S = 2.0
"""How long the result of a commit is reused."""
ANSWER_S = 5.0
"""The timeout of a commit."""
INSPECT_S = 60.0
"""The least interval between two checks of the file's pages."""
INSPECT_SHARE = 0.02
"""The largest share of time that these checks may take."""


class DatabaseHealth:
    """The health checks of one scheduler. renew: commits a minimal change: it renews the lease."""

    def __init__(self, jobs: Jobs, writer: Writer, renew: Callable[[], Awaitable[None]]) -> None:
        self._jobs = jobs
        self._writer = writer
        self._renew = renew
        self._commit: asyncio.Task[None] | None = None
        self._began_s = float("-inf")

    async def check(self) -> None:
        """Check that a change can be committed, by committing one unless that was done within FRESH_S.

        Errors: DatabaseAwayError, StaleEpochError; NotReadyError if the database does not answer.
        """
        self._jobs.check_there()
        if self._writer.failure:
            raise DatabaseAwayError(self._writer.failure, retry_after_s=2)
        if self._writer.idle_s() < FRESH_S:
            return
        if self._commit is None or (self._commit.done() and time.monotonic() - self._began_s > FRESH_S):
            self._commit, self._began_s = asyncio.ensure_future(self._renew()), time.monotonic()
        done, _ = await asyncio.wait([self._commit], timeout=ANSWER_S)
        if not done:
            waiting_s = time.monotonic() - self._began_s
            raise NotReadyError(f"the database has not taken a change for {waiting_s:.0f} s", retry_after_s=2)
        self._commit.result()

    async def inspect(self) -> None:
        """Check the file's pages regularly, until cancelled. Once one is corrupt, `Jobs` refuses all writes."""
        while True:
            began_s = time.monotonic()
            await asyncio.to_thread(self._jobs.inspect)
            await asyncio.sleep(max(INSPECT_S, (time.monotonic() - began_s) / INSPECT_SHARE))
