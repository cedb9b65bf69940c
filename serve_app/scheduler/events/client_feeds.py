"""The event feeds of clients' websockets: one ordered feed for each client, read by any ingress replica.

A feed remembers how far the client's sockets have sent, so a client that reconnects gets what it missed, once and in
order. Positions are the events' seq, which are valid across restarts.
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
from serve_app.scheduler.protocol.client import Attached, QueueMark, Reader, UnsentEvents

FLEETING = frozenset({"progress", "preview"})
"""Kinds of events of which a feed keeps only the newest."""
BEGINNINGS = frozenset({"queued", "started", "cached"})
"""Kinds of events before any node of a job runs."""
GATHER_S = 0.005
"""How long these and the queue's length wait for other events to be sent with them."""
IDLE_S = 600.0
"""How long an unused feed is kept."""


@dataclass(slots=True)
class Feed:
    """One client's events that no socket has sent. sent: the seq of the last one that was.

    held: jobs whose submission is not answered yet. Their events, and any after them, wait for that.
    """

    limits: EventLimits = field(default_factory=EventLimits)
    sent: int = 0
    unread: deque[Event] = field(default_factory=deque)
    held: set[str] = field(default_factory=set)
    token: str | None = None
    touched_s: float = field(default_factory=time.monotonic)
    bytes: int = 0

    def put(self, event: Event) -> None:
        """Add an event. A node's progress or preview replaces its last one, unless another kind came in between."""
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
        """Drop events up to seq, which are sent, and return those that may be sent next."""
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
        """Return the key of the limit that the feed exceeds, "" for none."""
        if self.bytes > self.limits.feed_bytes:
            return "events.feed_bytes"
        return "events.feed_events" if len(self.unread) >= self.limits.feed_events else ""

    def _drop_oldest(self) -> None:
        self.bytes -= self.unread.popleft().bytes


class _Poll:
    """A waiting call of `news`. changed: those of its clients whose feeds have changed."""

    def __init__(self, readers: Mapping[str, Reader]) -> None:
        self.readers = readers
        self.changed: set[str] = set()
        self.woken = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def wake(self, *, soon: bool) -> None:
        """Let it return: at once if soon, else within GATHER_S."""
        if soon:
            self.woken.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER_S, self.woken.set)

    def rest(self) -> None:
        """Let it wait again."""
        self.woken.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Feeds:
    """Every client's feed, and the length of the queue, which all clients get. epoch: of the scheduler.

    bytes: the size of all feeds at the last `forget_idle`. A poll checks all of its readers once, then only those whose
    feeds change.
    """

    def __init__(self, epoch: int, limits: EventLimits | None = None) -> None:
        self.bytes = 0
        self._limits = limits or EventLimits()
        self.feeds: dict[str, Feed] = {}
        self._held: dict[str, str] = {}
        self.polls: set[_Poll] = set()
        # Versions are unique across epochs, so every reader notices a count of a new epoch.
        self.queue = QueueMark(epoch << 32, 0)

    def put(self, client_id: str, event: Event) -> None:
        """Add an event for a client, whether or not it is connected."""
        self._feed(client_id).put(event)
        self._wake(client_id, soon=event.kind not in BEGINNINGS)

    def hold(self, job_id: str, client_id: str) -> None:
        """Hold a job's events back until `release`."""
        self._held[job_id] = client_id
        self._feed(client_id).held.add(job_id)

    def holds(self, job_id: str) -> bool:
        """Whether a job's events are held back."""
        return job_id in self._held

    def is_read(self, client_id: str) -> bool:
        """Whether a socket has read for a client in this epoch."""
        return self._feed(client_id).token is not None

    def release(self, job_id: str) -> None:
        """Let a job's events be sent."""
        if (client_id := self._held.pop(job_id, None)) is not None:
            (feed := self._feed(client_id)).held.discard(job_id)
            # Only the last one: an absent client may have thousands of events, and each of its jobs is released.
            self._wake(client_id, soon=bool(feed.unread) and feed.unread[-1].kind not in BEGINNINGS)

    def queue_is(self, remaining: int, of: Mapping[str, int] = MappingProxyType({})) -> None:
        """Set the number of unfinished jobs for all clients. of: by tenant."""
        self.queue = QueueMark(self.queue.version + 1, remaining, dict(of))
        for poll in self.polls:
            poll.wake(soon=False)

    def attach(self, client_id: str, token: str) -> Attached:
        """Make a socket the reader of a client's feed, in the place of an earlier one."""
        feed = self._feed(client_id)
        feed.token, feed.touched_s = token, time.monotonic()
        self._wake(client_id, soon=True)
        return Attached(feed.sent, self.queue)

    async def unsent_events(self, readers: Mapping[str, Reader], queue: int, timeout_s: float) -> UnsentEvents:
        """Return unsent events of the readers' feeds, waiting for the first. queue: the version that they have."""
        deadline = time.monotonic() + timeout_s
        news = self._now(readers)
        poll = _Poll(readers)
        self.polls.add(poll)
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
            self.polls.discard(poll)
            poll.rest()

    def forget_idle(self) -> None:
        """Drop feeds that are idle, and the least recently used ones if all exceed the budget of bytes."""
        limit = time.monotonic() - IDLE_S
        self.bytes = sum(feed.bytes for feed in self.feeds.values())
        for client_id, feed in sorted(self.feeds.items(), key=lambda item: item[1].touched_s):
            crowded = self.bytes > self._limits.feeds_bytes and not feed.held
            if feed.touched_s < limit or crowded:
                if feed.touched_s >= limit:
                    refused("events.feeds_bytes")
                self.bytes -= feed.bytes
                del self.feeds[client_id]

    def _now(self, readers: Mapping[str, Reader]) -> UnsentEvents:
        events: dict[str, tuple[Event, ...]] = {}
        replaced: set[str] = set()
        for client_id, reader in readers.items():
            feed = self._feed(client_id)
            # In a new epoch, the first socket that asks is the client's.
            feed.token = feed.token or reader.token
            ready = feed.after(reader.after)
            if feed.token != reader.token:
                replaced.add(client_id)
            elif ready:
                events[client_id] = ready
        return UnsentEvents(events, frozenset(replaced), self.queue)

    def _feed(self, client_id: str) -> Feed:
        if (feed := self.feeds.get(client_id)) is None:
            feed = self.feeds[client_id] = Feed(self._limits)
        return feed

    def _wake(self, client_id: str, *, soon: bool) -> None:
        for poll in self.polls:
            if client_id in poll.readers:
                poll.changed.add(client_id)
                poll.wake(soon=soon)
