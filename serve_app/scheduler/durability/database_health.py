"""Whether a job could be committed now, shown by committing one row; and whether the database's file is still sound."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from serve_app.errors import DatabaseAwayError, NotReadyError
from serve_app.scheduler.durability.writer import Writer
from serve_app.store.database.jobs import Jobs

FRESH_S = 2.0
"""How long the outcome of a commit answers for the next ones."""
ANSWER_S = 5.0
"""How long a commit may take."""
INSPECT_S = 60.0
"""How often the file's pages are looked at, if that is quick."""
INSPECT_SHARE = 0.02
"""How much of the time the looking may take."""


class DatabaseHealth:
    """One a scheduler's life. renew: commits the smallest change there is."""

    def __init__(self, jobs: Jobs, writer: Writer, renew: Callable[[], Awaitable[None]]) -> None:
        self._jobs = jobs
        self._writer = writer
        self._renew = renew
        self._commit: asyncio.Task[None] | None = None
        self._began_s = float("-inf")

    async def check(self) -> None:
        """Check that a change can be committed, by doing so unless that was done just now.

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
        """Look at the file's pages again and again, until cancelled; `Jobs` refuses all writes once some are spoilt."""
        while True:
            began_s = time.monotonic()
            await asyncio.to_thread(self._jobs.inspect)
            await asyncio.sleep(max(INSPECT_S, (time.monotonic() - began_s) / INSPECT_SHARE))
