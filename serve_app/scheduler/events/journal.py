"""What becomes of a job for good and what its clients are told of it, in one order: the one place that mints cursors.

Whatever clients are told for good is a Persist with the same cursor, in front of the Publish that tells them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_app.events import Ending, Event, Failure, Kind
from serve_app.scheduler.core.events import Command, Persist, Publish, Tell
from serve_app.scheduler.core.records import JobRecord
from serve_app.store.database.changes import (
    Claims,
    JobAccepted,
    JobEnded,
    JobLostReplica,
    JobRow,
    JobStarted,
    OutputRecorded,
    OwnerCharged,
    TenantUsed,
)

EPOCH_BITS = 32
"""An event's seq is epoch << EPOCH_BITS plus a count, so cursors keep growing across restarts."""


class Journal:
    """The commands of one life of the machine that have not been carried out. epoch: the fencing number of this life.

    at_s: Unix time of the stimulus that is being handled.
    """

    def __init__(self, epoch: int) -> None:
        self.commands: list[Command] = []
        self.at_s = 0.0
        self._epoch = epoch
        self._seq = epoch << EPOCH_BITS

    def next_seq(self) -> int:
        """Return the cursor of the next event."""
        self._seq += 1
        return self._seq

    def take(self) -> list[Command]:
        """Return the commands that have gathered, and forget them."""
        commands, self.commands = self.commands, []
        return commands

    def accepted(self, row: JobRow, claims: Claims) -> None:
        """A job has come; one of an earlier life is known already."""
        if row.queued_seq >> EPOCH_BITS == self._epoch:
            self._add(
                Persist(JobAccepted(row, claims)), Publish(Event(row.job_id, row.queued_seq, "queued", self.at_s))
            )

    def started(self, job: JobRecord) -> None:
        """A job has started; clients are told which of its nodes need not run."""
        # The clock may be set back meanwhile, and no job starts before it was there.
        job.started_s = max(self.at_s, job.row.created_s)
        seq = self.next_seq()
        started = Event(job.row.job_id, seq, "started", job.started_s)
        self._add(Persist(JobStarted(job.row.job_id, job.started_s, seq, job.cached)), Publish(started))
        self.told(job, "cached", {"nodes": list(job.cached)})

    def output(self, job: JobRecord, node_id: str, ui: Mapping[str, Any], where: Mapping[str, Any]) -> None:
        """An output is recorded. where: how the event names its node."""
        seq = self.next_seq()
        job.outputs[node_id] = ui
        executed = Event(job.row.job_id, seq, "executed", self.at_s, {**where, "output": ui})
        self._add(Persist(OutputRecorded(job.row.job_id, node_id, ui, seq)), Publish(executed))

    def lost_replica(self, job: JobRecord) -> None:
        """A job has lost a replica, which no restart forgives it."""
        self._add(Persist(JobLostReplica(job.row.job_id, job.losses, job.lone_losses)))

    def ended(self, job_id: str, state: Ending, failure: Failure, since_s: float) -> None:
        """A job has ended. since_s: when it began; the clock may have been set back since."""
        seq, at_s = self.next_seq(), max(self.at_s, since_s)
        told = Event(job_id, seq, state, at_s, failure.to_json())
        self._add(Persist(JobEnded(job_id, state, at_s, seq, failure)), Publish(told))

    def used(self, used: TenantUsed) -> None:
        """A tenant has used so much by now."""
        self._add(Persist(used))

    def charged(self, charged: OwnerCharged) -> None:
        """An owner of jobs has ended a replica, which no restart forgives it."""
        self._add(Persist(charged))

    def told(self, job: JobRecord, kind: Kind, data: Mapping[str, Any]) -> None:
        """Clients are told something that is not kept."""
        self._add(Publish(Event(job.row.job_id, self.next_seq(), kind, self.at_s, data)))

    def told_client(self, client_id: str, data: Mapping[str, Any]) -> None:
        """One client is told something outside any job."""
        self._add(Tell(client_id, Event("", self.next_seq(), "message", self.at_s, data)))

    def _add(self, *commands: Command) -> None:
        self.commands += commands
