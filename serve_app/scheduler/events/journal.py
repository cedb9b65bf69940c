"""Turns what happens to a job into commands: what is stored of it and which events clients get, in one order.

The one place that assigns cursors. An event that clients may rely on is a Persist before a Publish, with one cursor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serve_app.events import Ending, Event, Failure, Kind
from serve_app.scheduler.core.events import Command, Persist, Publish, PublishToClient
from serve_app.scheduler.core.records import JobRecord
from serve_app.store.database.changes import (
    Claims,
    JobAccepted,
    JobCached,
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
    """The commands of one machine that have not been executed. epoch: the fencing number of its scheduler.

    at_s: Unix time of the event that is being handled.
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
        """Remove and return the commands."""
        commands, self.commands = self.commands, []
        return commands

    def accepted(self, row: JobRow, claims: Claims) -> None:
        """Record a new job. One of an earlier epoch is recorded already."""
        if row.queued_seq >> EPOCH_BITS == self._epoch:
            self._add(
                Persist(JobAccepted(row, claims)), Publish(Event(row.job_id, row.queued_seq, "queued", self.at_s))
            )

    def started(self, job: JobRecord) -> None:
        """Record that a job has started, and publish which of its nodes are cached."""
        # The wall clock may have been set back, and no job starts before it was submitted.
        job.started_s = max(self.at_s, job.row.created_s)
        seq = self.next_seq()
        started = Event(job.row.job_id, seq, "started", job.started_s)
        self._add(Persist(JobStarted(job.row.job_id, job.started_s, seq, job.cached)), Publish(started))
        self.publish(job, "cached", {"nodes": list(job.cached)})

    def cached(self, job: JobRecord, nodes: Sequence[str]) -> None:
        """Record and publish that more nodes of a running job need not run."""
        job.finished.update(nodes)
        job.cached = tuple(dict.fromkeys((*job.cached, *nodes)))
        self._add(Persist(JobCached(job.row.job_id, job.cached)))
        self.publish(job, "cached", {"nodes": list(nodes)})

    def output(self, job: JobRecord, node_id: str, ui: Mapping[str, Any], where: Mapping[str, Any]) -> None:
        """Record an output. where: the fields by which the event names its node."""
        seq = self.next_seq()
        job.outputs[node_id] = ui
        executed = Event(job.row.job_id, seq, "executed", self.at_s, {**where, "output": ui})
        self._add(Persist(OutputRecorded(job.row.job_id, node_id, ui, seq)), Publish(executed))

    def lost_replica(self, job: JobRecord) -> None:
        """Record that a job has lost a replica, so that a restart of the scheduler does not forget it."""
        self._add(Persist(JobLostReplica(job.row.job_id, job.losses, job.lone_losses)))

    def ended(self, job_id: str, state: Ending, failure: Failure, since_s: float) -> None:
        """Record that a job has ended. since_s: when it began; the clock may have been set back since."""
        seq, at_s = self.next_seq(), max(self.at_s, since_s)
        ended = Event(job_id, seq, state, at_s, failure.to_json())
        self._add(Persist(JobEnded(job_id, state, at_s, seq, failure)), Publish(ended))

    def used(self, used: TenantUsed) -> None:
        """Record the device time that a tenant has used."""
        self._add(Persist(used))

    def charged(self, charged: OwnerCharged) -> None:
        """Record that an owner of jobs has ended a replica, so that a restart of the scheduler does not forget it."""
        self._add(Persist(charged))

    def publish(self, job: JobRecord, kind: Kind, data: Mapping[str, Any]) -> None:
        """Publish an event that is not stored."""
        self._add(Publish(Event(job.row.job_id, self.next_seq(), kind, self.at_s, data)))

    def publish_to_client(self, client_id: str, data: Mapping[str, Any]) -> None:
        """Publish a message to one client, outside any job."""
        self._add(PublishToClient(client_id, Event("", self.next_seq(), "message", self.at_s, data)))

    def _add(self, *commands: Command) -> None:
        self.commands += commands
