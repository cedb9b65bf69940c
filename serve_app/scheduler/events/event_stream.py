"""The events of one job, each with a cursor, for long polls; and their reconstruction from the job's row."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from dataclasses import dataclass, field

from serve_app.events import Event
from serve_app.store.database.changes import JobRow


@dataclass(slots=True)
class EventStream:
    """One job's events so far; the last one has `last` set. arrived: wakes waiting polls, None without any."""

    events: list[Event] = field(default_factory=list)
    arrived: asyncio.Event | None = None
    bytes: int = 0

    def put(self, event: Event) -> None:
        self.bytes += event.bytes
        self.events.append(event)
        # Wakes every waiting poll, and none that begins later.
        if self.arrived is not None:
            self.arrived.set()
            self.arrived = None

    def begin(self, events: list[Event]) -> None:
        """Insert earlier events at the front."""
        self.bytes += sum(event.bytes for event in events)
        self.events[:0] = events

    def after(self, cursor: int) -> list[Event]:
        return self.events[bisect_right(self.events, cursor, key=lambda event: event.seq) :]

    async def poll(self, cursor: int, timeout_s: float) -> list[Event]:
        """Return the events after the cursor, waiting for the first; [] after the timeout or the job's end."""
        deadline = time.monotonic() + timeout_s
        while not (found := self.after(cursor)):
            left = deadline - time.monotonic()
            if left <= 0 or (self.events and self.events[-1].last):
                return []
            arrived = self.arrived = self.arrived or asyncio.Event()
            try:
                async with asyncio.timeout(left):
                    await arrived.wait()
            except TimeoutError:
                return []
        return found


def rebuilt(row: JobRow) -> list[Event]:
    """Return the durable events of a job, reconstructed from its row after a restart."""
    events = [Event(row.job_id, row.queued_seq, "queued", row.created_s)]
    if row.started_s is not None and row.started_seq is not None:
        events.append(Event(row.job_id, row.started_seq, "started", row.started_s))
        events.append(Event(row.job_id, row.started_seq + 1, "cached", row.started_s, {"nodes": list(row.cached)}))
    for (node_id, ui), seq in zip(row.outputs.items(), row.output_seqs, strict=True):
        at_s = row.ended_s or row.started_s or row.created_s
        events.append(Event(row.job_id, seq, "executed", at_s, {"node": node_id, "output": ui}))
    ending = None if row.state == "queued" or row.state == "running" else row.state
    if row.ended_s is not None and row.ended_seq is not None and ending is not None:
        events.append(Event(row.job_id, row.ended_seq, ending, row.ended_s, row.failure.to_json()))
    return sorted(events, key=lambda e: e.seq)
