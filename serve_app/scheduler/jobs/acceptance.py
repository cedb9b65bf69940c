"""Accepts submissions: one job for each id, committed before it is answered, within its tenant's quotas."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from weakref import WeakValueDictionary

from serve_app.config.quotas import Quotas
from serve_app.errors import (
    ChangeRefusedError,
    ClaimRefusedError,
    DatabaseGoneError,
    InvalidSubmissionError,
    QuotaLeft,
)
from serve_app.scheduler.core.events import JobArrived
from serve_app.scheduler.core.machine import Machine
from serve_app.scheduler.durability.lease import SchedulerLease
from serve_app.scheduler.durability.writer import Writer
from serve_app.scheduler.events.published_jobs import PublishedJobs
from serve_app.scheduler.jobs.admission import Admission
from serve_app.scheduler.jobs.job_lookup import JobLookup
from serve_app.scheduler.jobs.repeats import check_repeat
from serve_app.scheduler.protocol.client import Accepted
from serve_app.store.database.changes import Submission
from serve_app.store.database.jobs import Jobs
from serve_app.store.tenants.stored_bytes import StoredBytes, refusal

PROBE_S = 0.2
"""The database is taken to be available for this long after a commit."""
LOOK_S = 1.0
"""The interval at which a waiting submission checks that the database can still commit."""


class Acceptance:
    """Accepts the submissions of one scheduler. apply: passes an event to the machine; its future is done once it is
    durable.

    in_database: as `SchedulerLease`'s.
    """

    def __init__(
        self,
        jobs: Jobs,
        lease: SchedulerLease,
        machine: Machine,
        published: PublishedJobs,
        lookup: JobLookup,
        writer: Writer,
        admission: Admission,
        quotas: Quotas,
        *,
        apply: Callable[[JobArrived], asyncio.Future[None]],
        in_database: Callable[..., Awaitable[Any]],
    ) -> None:
        self._jobs = jobs
        self._lease = lease
        self._machine = machine
        self._published = published
        self._lookup = lookup
        self._writer = writer
        self._admission = admission
        self._quotas = quotas
        self._apply = apply
        self._in_database = in_database
        self._submitting: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def submit(self, submission: Submission) -> Accepted:
        """Accept a job. One that was accepted before gets the same answer.

        Errors: InvalidSubmissionError for the id of another job; ClaimRefusedError; InvalidGraphError, NotReadyError,
        QueueFullError, DrainingError, DatabaseAwayError; DatabaseDamagedError, also while waiting for the commit.
        """
        try:
            self._jobs.check_there()
        except DatabaseGoneError:  # a write restores the file if possible
            await self._in_database(self._jobs.renew, self._lease.epoch)
        # The lock stays in the dictionary while a call waits for it or has it.
        async with self._submitting.setdefault(submission.job_id, asyncio.Lock()):
            # A new id needs no look-up, unless the database may be unavailable.
            if submission.id_is_new and self._writer.idle_s() < PROBE_S:
                return await self._accept(submission)
            if await self._lookup.row(submission.job_id) is not None:
                await self._writer.put([])  # the job in memory may not be durable yet
                if earlier := await self._lookup.row(submission.job_id):
                    check_repeat(earlier, submission)
                    stored = await self._stored_by(submission.tenant)
                    left, held = self._left(submission.tenant, stored), self._published.feeds.holds(earlier.job_id)
                    return Accepted(earlier.job_id, earlier.number, left, held)
            return await self._accept(submission)

    async def _accept(self, submission: Submission) -> Accepted:
        stored = await self._stored_by(submission.tenant)
        most = self._quotas.of(submission.tenant).bytes_stored
        if most is not None and stored >= most:
            raise refusal(most, stored)
        row, planned = await self._admission.admit(submission, self._waiting, self._machine.next_seq)
        self._published.expect(row)
        accepted = self._apply(JobArrived(row, planned, submission.claims))
        if arriving := self._machine.jobs.get(row.job_id):
            self._published.arrives(arriving)
        try:
            await self._durable(accepted)
        except ChangeRefusedError as error:
            self._published.dismiss(row.job_id)
            if isinstance(error, ClaimRefusedError):
                raise
            raise InvalidSubmissionError(f"the job cannot be kept: {error}") from error
        feeds = self._published.feeds
        if row.feed is not None and not feeds.is_read(row.feed):
            feeds.release(row.job_id)  # no socket reads the feed, so no event can precede the answer
        return Accepted(row.job_id, row.number, self._left(row.tenant, stored), feeds.holds(row.job_id))

    async def _durable(self, accepted: asyncio.Future[None]) -> None:
        """Wait until a job is committed. Errors: DatabaseDamagedError if it cannot be."""
        while not accepted.done():
            await asyncio.wait([accepted], timeout=LOOK_S)
            if not accepted.done():
                self._jobs.check_sound()
        await accepted

    async def _stored_by(self, tenant: str) -> int:
        """Return the bytes that a tenant has stored, 0 without a quota of bytes."""
        if self._quotas.of(tenant).bytes_stored is None:
            return 0
        stored: int = await self._in_database(self._jobs.query, self._lease.epoch, StoredBytes(tenant))
        return stored

    def _left(self, tenant: str, stored: int) -> tuple[QuotaLeft, ...]:
        """Return what is left of a tenant's quotas."""
        return self._machine.usage.left(tenant, self._quotas.of(tenant), stored, time.time())

    def _waiting(self, tenant: str) -> Mapping[tuple[str, str | None], int]:
        self._lease.check()  # it may have lost the lease since the submission came
        self._machine.usage.check(tenant, self._quotas.of(tenant), time.time())
        return self._machine.queued
