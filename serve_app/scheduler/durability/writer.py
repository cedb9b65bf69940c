"""What makes decisions durable and then carries them out: one queue of commands, one transaction for all that gathered.

A database that is away is asked again until it is back, and everything waits for it. A job whose change the database
will never take is ended in error instead, so that it holds nobody else up.
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
"""How long to wait before asking a database again, at first and at most."""


async def persistently(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask until there is an answer. Errors: StaleEpochError, ChangeRefusedError; they would be the same again."""
    delay_s, told = FIRST_DELAY_S, ""
    while True:
        try:
            answer = await ask()
        except (StaleEpochError, ChangeRefusedError):
            raise
        except Exception as error:
            if str(error) != told:  # once, however long it lasts
                told = str(error)
                _log.error("%s; asking again until it answers", error, exc_info=not isinstance(error, UnavailableError))
            await asyncio.sleep(delay_s)
            delay_s = min(LONGEST_DELAY_S, delay_s * 2)
        else:
            if told:
                _log.warning("the database answers again")
            return answer


class Writer:
    """One a scheduler's life.

    write: applies changes, all or none. execute: does what is behind them. refused: takes in that a job cannot be
    recorded, and returns the commands that end it. fenced: takes in that a newer scheduler holds the lease.
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
        """Why the newest try to write has failed, while it is tried again."""

    def idle_s(self) -> float:
        """Return the seconds since the database last took a change."""
        return time.monotonic() - self._wrote_s

    def put(self, commands: list[Command]) -> asyncio.Future[None]:
        """Take commands in; the future is done once they are durable and carried out.

        It fails with DrainingError if they never will be; with ChangeRefusedError for a new job that cannot be kept.
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
        """Make a batch durable, but for jobs that are refused; False once a newer scheduler holds the lease."""
        while changes := [c.change for commands, _ in batch for c in commands if isinstance(c, Persist)]:
            try:
                await persistently(partial(self._try, changes))
                self._wrote_s = time.monotonic()
                break
            except StaleEpochError as error:
                self._fenced(error)
                return False
            except ChangeRefusedError as error:
                if not isinstance(error, ClaimRefusedError):  # which is its client's doing, who is told
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
        """Take all that was to be written and told of a job out of the batch and out of what waits; end the job."""
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
            # There is no row to end, or it takes not even its end: what is left is to stop what runs of it.
            ending = [command for command in ending if _job_id(command) != job_id]
        self._given_up.add(job_id)
        batch.append((ending, asyncio.get_running_loop().create_future()))


def _job_id(command: Command) -> str | None:
    """Return the job whose record or events a command is about."""
    match command:
        case Persist(change):
            return change.job_id
        case Publish(event):
            return event.job_id
        case _:
            return None
