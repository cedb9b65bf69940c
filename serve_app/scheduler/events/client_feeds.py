"""What clients are told over their sockets: one ordered feed a client, read from wherever its socket is.

A client's sockets come and go, at any ingress replica. The feed remembers how far they have sent, so that a client that
returns gets what it missed, once and in order. Positions are the events' own seq, which also outlive a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from serve_app.config.limits import EventLimits
from serve_app.events import Event
from serve_app.limits import refused
from serve_app.scheduler.protocol.client import Attached, News, QueueMark, Reader

FLEETING = frozenset({"progress", "preview"})
"""Kinds of which only the newest matters."""
BEGINNINGS = frozenset({"queued", "started", "cached"})
"""Kinds that a job begins with, before any node of it runs."""
GATHER_S = 0.005
"""How long beginnings and the queue's length wait for something else to go with them."""
IDLE_S = 600.0
"""How long a feed that nothing enters and nobody reads is remembered."""


@dataclass(slots=True)
class Feed:
    """One client's events that no socket has sent yet. sent: the seq of the last that one has.

    held: jobs whose submission has not been answered yet; their events, and any behind them, wait for that.
    """

    limits: EventLimits = field(default_factory=EventLimits)
    sent: int = 0
    unread: deque[Event] = field(default_factory=deque)
    held: set[str] = field(default_factory=set)
    token: str | None = None
    touched_s: float = field(default_factory=time.monotonic)
    bytes: int = 0

    def put(self, event: Event) -> None:
        """Add an event; progress or a picture of a node takes the place of the last one, if only such came since."""
        self.touched_s = time.monotonic()
        if event.kind in FLEETING:
            for place in range(len(self.unread) - 1, -1, -1):
                waiting = self.unread[place]
                if waiting.kind not in FLEETING:
                    break
                if (waiting.kind, waiting.job_id, waiting.data["node"]) == (
                    event.kind,
                    event.job_id,
                    event.data["node"],
                ):
                    self.bytes -= waiting.bytes
                    del self.unread[place]
                    break
        self.bytes += event.bytes
        while self.unread and (key := self._full()):
            refused(key)
            self._drop_oldest()
        self.unread.append(event)

    def after(self, seq: int) -> tuple[Event, ...]:
        """Forget what is sent, and return what may be sent next."""
        self.touched_s = time.monotonic()
        self.sent = max(self.sent, seq)
        while self.unread and self.unread[0].seq <= self.sent:
            self._drop_oldest()
        ready: list[Event] = []
        for event in self.unread:
            if event.job_id in self.held:
                break
            ready.append(event)
        return tuple(ready)

    def _full(self) -> str:
        """Return the limit that the newest event goes beyond; "" for none."""
        if self.bytes > self.limits.feed_bytes:
            return "events.feed_bytes"
        return "events.feed_events" if len(self.unread) >= self.limits.feed_events else ""

    def _drop_oldest(self) -> None:
        self.bytes -= self.unread.popleft().bytes


class _Poll:
    """A question for news that waits. changed: those of its clients whose feeds have changed meanwhile."""

    def __init__(self, readers: Mapping[str, Reader]) -> None:
        self.readers = readers
        self.changed: set[str] = set()
        self.woken = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def wake(self, *, soon: bool) -> None:
        """Have it answered: soon, or within a moment."""
        if soon:
            self.woken.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER_S, self.woken.set)

    def rest(self) -> None:
        """Let it wait for what comes from now on."""
        self.woken.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Feeds:
    """Every client's feed, and the length of the queue, which everyone is told. epoch: of the scheduler's life.

    bytes: what all feeds took when `forget_idle` looked last.

    A poll looks at each of its readers as it comes, and from then on only at those whose feeds change.
    """

    def __init__(self, epoch: int, limits: EventLimits | None = None) -> None:
        self.bytes = 0
        self._limits = limits or EventLimits()
        self._feeds: dict[str, Feed] = {}
        self._held: dict[str, str] = {}
        self._polls: set[_Poll] = set()
        # A version of an earlier life never comes back, so every reader sees that the count is another's.
        self.queue = QueueMark(epoch << 32, 0)

    def put(self, client_id: str, event: Event) -> None:
        """Add an event for a client, whether or not it is connected."""
        self._feed(client_id).put(event)
        self._wake(client_id, soon=event.kind not in BEGINNINGS)

    def hold(self, job_id: str, client_id: str) -> None:
        """Keep a job's events back until `release`."""
        self._held[job_id] = client_id
        self._feed(client_id).held.add(job_id)

    def holds(self, job_id: str) -> bool:
        """Whether a job's events are kept back."""
        return job_id in self._held

    def is_read(self, client_id: str) -> bool:
        """Whether a socket has read for a client, in this life."""
        return self._feed(client_id).token is not None

    def release(self, job_id: str) -> None:
        """Let a job's events go out."""
        if (client_id := self._held.pop(job_id, None)) is not None:
            (feed := self._feed(client_id)).held.discard(job_id)
            # The last alone is looked at: a client that is not here may have thousands, and releases each of its jobs.
            self._wake(client_id, soon=bool(feed.unread) and feed.unread[-1].kind not in BEGINNINGS)

    def queue_is(self, remaining: int, of: Mapping[str, int] = MappingProxyType({})) -> None:
        """Tell everyone how many jobs have not ended. of: by tenant."""
        self.queue = QueueMark(self.queue.version + 1, remaining, dict(of))
        for poll in self._polls:
            poll.wake(soon=False)

    def attach(self, client_id: str, token: str) -> Attached:
        """Let a socket read for a client from where its sockets are; the one before is replaced."""
        feed = self._feed(client_id)
        feed.token, feed.touched_s = token, time.monotonic()
        self._wake(client_id, soon=True)
        return Attached(feed.sent, self.queue)

    async def news(self, readers: Mapping[str, Reader], queue: int, timeout_s: float) -> News:
        """Return what the readers have not sent, waiting for the first of it. queue: the version they know."""
        deadline = time.monotonic() + timeout_s
        news = self._now(readers)
        poll = _Poll(readers)
        self._polls.add(poll)
        try:
            while not (news.events or news.replaced or news.queue.version != queue):
                if (left := deadline - time.monotonic()) <= 0:
                    break
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await poll.woken.wait()
                poll.rest()
                changed, poll.changed = poll.changed, set()
                news = self._now({client_id: readers[client_id] for client_id in changed})
            return replace(news, held=frozenset(self._held.values()) & readers.keys())
        finally:
            self._polls.discard(poll)
            poll.rest()

    def forget_idle(self) -> None:
        """Forget the feeds that nobody has touched for long, and more of them where all take too much memory."""
        limit = time.monotonic() - IDLE_S
        self.bytes = sum(feed.bytes for feed in self._feeds.values())
        for client_id, feed in sorted(self._feeds.items(), key=lambda item: item[1].touched_s):
            crowded = self.bytes > self._limits.feeds_bytes and not feed.held
            if feed.touched_s < limit or crowded:
                if feed.touched_s >= limit:
                    refused("events.feeds_bytes")
                self.bytes -= feed.bytes
                del self._feeds[client_id]

    def _now(self, readers: Mapping[str, Reader]) -> News:
        events: dict[str, tuple[Event, ...]] = {}
        replaced: set[str] = set()
        for client_id, reader in readers.items():
            feed = self._feed(client_id)
            # In a new life of the scheduler, the socket that comes first is the client's.
            feed.token = feed.token or reader.token
            ready = feed.after(reader.after)
            if feed.token != reader.token:
                replaced.add(client_id)
            elif ready:
                events[client_id] = ready
        return News(events, frozenset(replaced), self.queue)

    def _feed(self, client_id: str) -> Feed:
        if (feed := self._feeds.get(client_id)) is None:
            feed = self._feeds[client_id] = Feed(self._limits)
        return feed

    def _wake(self, client_id: str, *, soon: bool) -> None:
        for poll in self._polls:
            if client_id in poll.readers:
                poll.changed.add(client_id)
                poll.wake(soon=soon)
