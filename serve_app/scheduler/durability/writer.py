"""Commits the machine's changes and then executes its commands: one queue, one transaction for each batch.

An unavailable database is retried until it is back; everything waits for it. A job whose change the database refuses
ends in error, so that it blocks no other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeAlias, TypeVar

from serve_app import log
from serve_app.errors import ChangeRefusedError, ClaimRefusedError, DrainingError, StaleEpochError, UnavailableError
from serve_app.scheduler.core.events import Command, Persist, Publish
from serve_app.store.database.changes import Change, JobAccepted

T = TypeVar("T")
Batch: TypeAlias = list[tuple[list[Command], "asyncio.Future[None]"]]
_log = log.get("scheduler")

FIRST_DELAY_S, LONGEST_DELAY_S = 0.1, 5.0
"""The first and the longest delay between two tries."""


async def persistently(ask: Callable[[], Awaitable[T]]) -> T:
    """Retry a database call, with backoff, until it succeeds. Errors: StaleEpochError, ChangeRefusedError."""
    delay_s, logged = FIRST_DELAY_S, ""
    while True:
        try:
            answer = await ask()
        except (StaleEpochError, ChangeRefusedError):
            raise
        except Exception as error:
            if str(error) != logged:  # once, however long it lasts
                logged = str(error)
                _log.error("%s; asking again until it answers", error, exc_info=not isinstance(error, UnavailableError))
            await asyncio.sleep(delay_s)
            delay_s = min(LONGEST_DELAY_S, delay_s * 2)
        else:
            if logged:
                _log.warning("the database answers again")
            return answer


class Writer:
    """The queue of commands of one scheduler, and the loop that commits and executes them.

    write: applies changes, all or none. execute: executes the commands of a committed batch. refused: returns the
    commands that end a job whose change is refused. fenced: is called if a newer scheduler holds the lease.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Change]], Awaitable[None]],
        execute: Callable[[Sequence[Command]], None],
        refused: Callable[[ChangeRefusedError], list[Command]],
        fenced: Callable[[StaleEpochError], None],
    ) -> None:
        self._write = write
        self._execute = execute
        self._refused = refused
        self._fenced = fenced
        self._pending: Batch = []
        self._arrived = asyncio.Event()
        self._writing = False
        self._given_up: set[str] = set()
        self._wrote_s = float("-inf")
        self.failure = ""
        """The error of the last write, while it is retried."""

    def idle_s(self) -> float:
        """Return the seconds since the database last took a change."""
        return time.monotonic() - self._wrote_s

    def put(self, commands: list[Command]) -> asyncio.Future[None]:
        """Queue commands. The future is done once they are durable and executed.

        It fails with DrainingError if they never will be, with ChangeRefusedError for a new job that is refused.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._pending and not self._writing and not any(isinstance(c, Persist) for c in commands):
            self._execute(commands)
            done.set_result(None)
        else:
            self._pending.append((commands, done))
            self._arrived.set()
        return done

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._pending:
                batch, self._pending = self._pending, []
                self._writing = True
                durable = await self._commit(batch)
                self._writing = not durable
                for commands, done in batch:
                    if durable:
                        self._execute(commands)
                    if done.done():
                        continue
                    if durable:
                        done.set_result(None)
                    else:
                        done.set_exception(DrainingError("a newer scheduler has taken over", retry_after_s=2))

    async def _commit(self, batch: Batch) -> bool:
        """Commit a batch without the jobs that are refused; return False if a newer scheduler holds the lease."""
        while changes := [c.change for commands, _ in batch for c in commands if isinstance(c, Persist)]:
            try:
                await persistently(partial(self._try, changes))
                self._wrote_s = time.monotonic()
                break
            except StaleEpochError as error:
                self._fenced(error)
                return False
            except ChangeRefusedError as error:
                if not isinstance(error, ClaimRefusedError):  # which its client caused and gets as an error
                    _log.error("job %s ends: %s", error.job_id, error)
                self._refuse(batch, error)
        return True

    async def _try(self, changes: Sequence[Change]) -> None:
        try:
            await self._write(changes)
        except UnavailableError as error:
            self.failure = str(error)
            raise
        self.failure = ""

    def _refuse(self, batch: Batch, error: ChangeRefusedError) -> None:
        """Remove a job's commands from the batch and from the queue, and end the job."""
        job_id, new = error.job_id, False
        for commands, done in [*batch, *self._pending]:
            if any(
                isinstance(c, Persist) and isinstance(c.change, JobAccepted) and c.change.job_id == job_id
                for c in commands
            ):
                new = True
                if not done.done():
                    done.set_exception(error)
            commands[:] = [command for command in commands if _job_id(command) != job_id]
        ending = self._refused(error)
        if new or job_id in self._given_up:
            # It has no row, or its end is refused too: only its running tasks are stopped.
            ending = [command for command in ending if _job_id(command) != job_id]
        self._given_up.add(job_id)
        batch.append((ending, asyncio.get_running_loop().create_future()))


def _job_id(command: Command) -> str | None:
    """Return the job that a command records or publishes, or None."""
    match command:
        case Persist(change):
            return change.job_id
        case Publish(event):
            return event.job_id
        case _:
            return None
