"""The view of jobs that clients see: unfinished jobs, event streams and client feeds.

Changed only by durable events, each in one step: when a client reads a job's end anywhere, the job has left the queue
and its history is complete.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from serve_app.config.limits import EventLimits
from serve_app.events import Event
from serve_app.scheduler.core.records import JobRecord
from serve_app.scheduler.events.client_feeds import Feeds
from serve_app.scheduler.events.event_stream import EventStream, rebuilt
from serve_app.scheduler.events.journal import EPOCH_BITS
from serve_app.scheduler.jobs.list_counts import ListCounts, stretch_of
from serve_app.scheduler.jobs.recent_successes import RecentSuccesses
from serve_app.scheduler.jobs.unfinished_jobs import UnfinishedJobs
from serve_app.scheduler.jobs.views import success_view
from serve_app.scheduler.protocol.client import Attached
from serve_app.store.database.changes import JobRow, ListCount

ANSWER_S = 2.0
"""The longest time that a job's events wait for the answer to its submission, as its ingress replica may die."""


class PublishedJobs:
    """The published state of one epoch.

    unended: published jobs whose end is not published. successes: the latest successful ones. counts: of all jobs in
    lists, also of earlier epochs. seq: the cursor of the last published event.
    """

    def __init__(self, epoch: int, limits: EventLimits | None = None) -> None:
        self._limits = limits or EventLimits()
        self.counts = ListCounts()
        self._recounts: list[ListCounts] = []
        self.seq = epoch << EPOCH_BITS
        self.unended = UnfinishedJobs()
        self.successes = RecentSuccesses()
        self.feeds = Feeds(epoch, self._limits)
        self._streams: OrderedDict[str, EventStream] = OrderedDict()
        self.streams_bytes = 0
        self._previews: dict[str, Event] = {}
        self._arriving: dict[str, JobRecord] = {}
        self._clients: dict[str, str] = {}

    def expect(self, row: JobRow) -> None:
        """Prepare for a job that is about to be accepted: its events wait until its submission is answered."""
        if row.feed is not None:
            self._clients[row.job_id] = row.feed
            self.feeds.hold(row.job_id, row.feed)
            asyncio.get_running_loop().call_later(ANSWER_S, self.feeds.release, row.job_id)

    def arrives(self, job: JobRecord) -> None:
        """Add a job that becomes visible when its `queued` event is published."""
        self._arriving[job.row.job_id] = job

    def dismiss(self, job_id: str) -> None:
        """Remove a job whose submission is refused."""
        self._arriving.pop(job_id, None)
        self._clients.pop(job_id, None)
        self.feeds.release(job_id)

    def recover(self, rows: Iterable[JobRow]) -> None:
        """Put the durable events of jobs of an earlier epoch into their clients' feeds."""
        events = []
        for row in rows:
            if row.feed is not None:
                events += [(event, row.feed) for event in rebuilt(row)]
                if not row.ended:
                    self._clients[row.job_id] = row.feed
        for event, feed in sorted(events, key=lambda pair: pair[0].seq):
            self.feeds.put(feed, event)

    def show(self, job: JobRecord) -> None:
        """Add an unfinished job of an earlier epoch."""
        self.unended.add(job, started=job.started_s is not None)
        self._count(job.row, "queued" if job.started_s is None else "running")
        self.feeds.queue_is(len(self.unended), self.unended.by_tenant())

    def publish(self, event: Event) -> None:
        """Publish an event, and update the lists of jobs by it."""
        job_id, self.seq = event.job_id, event.seq
        if event.kind == "preview":
            # Previews are for connected clients only and no part of a job's event stream.
            if job_id in self.unended:
                self._previews[job_id] = event
            if (watching := self._clients.get(job_id)) is not None:
                self.feeds.put(watching, event)
            return
        stream = self._streams.get(job_id) or self._begin(job_id)
        self.streams_bytes -= stream.bytes
        stream.put(event)
        self.streams_bytes += stream.bytes
        self._streams.move_to_end(job_id)
        arrived = self._arriving.pop(job_id, None) if event.kind == "queued" else None
        if arrived is not None:
            self.unended.add(arrived, started=False)
            self._count(arrived.row, "queued")
        elif event.kind == "started" and (started := self.unended.start(job_id)) is not None:
            self._count(started.row, "queued", -1)
            self._count(started.row, "running")
        if event.last:
            self._previews.pop(job_id, None)
            state = "running" if job_id in self.unended.running else "queued"
            if (ended := self.unended.discard(job_id)) is not None:
                self._count(ended.row, state, -1)
                if event.kind != "cancelled" or state == "running":
                    self._count(ended.row, event.kind, ended_seq=event.seq)
            # Other jobs may lack recorded outputs.
            if ended is not None and event.kind == "success":
                self.successes.add(success_view(ended, event.at_s))
            # A job that could not be recorded ends without having been visible.
            self._arriving.pop(job_id, None)
            self._shorten()
        client_id = self._clients.pop(job_id, None) if event.last else self._clients.get(job_id)
        if client_id is not None:
            self.feeds.put(client_id, event)
        if event.last or arrived is not None:
            self.feeds.queue_is(len(self.unended), self.unended.by_tenant())

    @contextlib.contextmanager
    def recounting(self) -> Iterator[ListCounts]:
        """Recount the jobs in lists. Yields counts of the unfinished jobs, which also follow those that end meanwhile.

        The caller adds the jobs that ended before; on exit the counts replace the old ones. Of two overlapping recounts
        the one begun later counts.
        """
        counts = self.counts.unfinished()
        self._recounts.append(counts)
        try:
            yield counts
            if counts in self._recounts:
                self.counts = counts
                del self._recounts[: self._recounts.index(counts)]
        finally:
            if counts in self._recounts:
                self._recounts.remove(counts)

    def _count(self, row: JobRow, state: str, jobs: int = 1, ended_seq: int | None = None) -> None:
        ended = None if ended_seq is None else stretch_of("ended", ended_seq)
        counted = ListCount(row.tenant, state, stretch_of("created", row.order), ended, jobs)
        for counts in (self.counts, *self._recounts):
            counts.add(counted)

    def attach(self, feed: str, token: str) -> Attached:
        """As `Feeds.attach`, with the client's running jobs."""
        jobs = (job for job in self.unended.running if job.row.feed == feed)
        return replace(self.feeds.attach(feed, token), running=tuple(job.row.job_id for job in jobs))

    def preview(self, job_id: str) -> Event | None:
        """Return the newest preview of an unfinished job."""
        return self._previews.get(job_id)

    def stream(self, job_id: str) -> EventStream | None:
        """Return a job's event stream if it is complete in memory, else None."""
        stream = self._streams.get(job_id)
        return stream if stream is not None and stream.events and stream.events[0].kind == "queued" else None

    def rebuild(self, row: JobRow) -> EventStream:
        """Return a job's event stream, with the missing events reconstructed from its row."""
        stream = self._streams.get(row.job_id) or self._begin(row.job_id)
        if not stream.events or stream.events[0].kind != "queued":
            self.streams_bytes -= stream.bytes
            stream.begin([e for e in rebuilt(row) if not stream.events or e.seq < stream.events[0].seq])
            self.streams_bytes += stream.bytes
            self._streams.move_to_end(row.job_id)
            self._shorten()
        return stream

    @property
    def use(self) -> dict[str, float]:
        """The used share of the limits on stored events, 0 to 1, by their key."""
        bounded = {
            "events.feeds_bytes": (self.feeds.bytes, self._limits.feeds_bytes),
            "events.streams_bytes": (self.streams_bytes, self._limits.streams_bytes),
        }
        return {key: taken / max(1, most) for key, (taken, most) in bounded.items()}

    def forget(self, job_ids: Collection[str] | None, tenant: str = "") -> None:
        """Forget ended jobs: these, or all. For all jobs of a tenant, streams stay until they are evicted."""
        if tenant and job_ids is None:
            job_ids = self.successes.of(tenant)
        self.successes.forget(job_ids)
        for job_id in list(self._streams if job_ids is None else job_ids):
            if job_id not in self.unended and job_id not in self._arriving:
                self._drop(job_id)

    def _shorten(self) -> None:
        most = self._limits.streams + len(self.unended) + len(self._arriving)
        # Each is visited once at most, since all may belong to unfinished jobs.
        for _ in range(len(self._streams)):
            if len(self._streams) <= most and self.streams_bytes <= self._limits.streams_bytes:
                return
            oldest = next(iter(self._streams))
            if oldest in self.unended or oldest in self._arriving:
                self._streams.move_to_end(oldest)
            else:
                self._drop(oldest)

    def _begin(self, job_id: str) -> EventStream:
        self._streams[job_id] = stream = EventStream()
        return stream

    def _drop(self, job_id: str) -> None:
        if (stream := self._streams.pop(job_id, None)) is not None:
            self.streams_bytes -= stream.bytes
