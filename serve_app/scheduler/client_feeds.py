"""What clients are told over their sockets: one ordered feed a client, read from wherever its socket is.

A client's sockets come and go, at any ingress replica. The feed remembers how far they have sent, so that a client that
returns gets what it missed, once and in order. Positions are the events' own seq, which also outlive a restart.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from serve_app.events import Event, data_bytes
from serve_app.scheduler.client import Attached, News, QueueMark, Reader

UNREAD_KEPT = 4096
"""Events that wait for one client; older ones are dropped, as a client that is away for so long reads the history."""
UNREAD_BYTES = 16 * 1024 * 1024
"""What they may take; the newest stays however large it is."""
FEEDS_BYTES = 256 * 1024 * 1024
"""What all feeds may take; beyond it those that have not been touched for longest are forgotten."""
FLEETING = frozenset({"progress", "preview"})
"""Kinds of which only the newest matters."""
IDLE_S = 600.0
"""How long a feed that nothing enters and nobody reads is remembered."""


@dataclass(slots=True)
class Feed:
    """One client's events that no socket has sent yet. sent: the seq of the last that one has.

    held: jobs whose submission has not been answered yet; their events, and any behind them, wait for that.
    """

    sent: int = 0
    unread: deque[Event] = field(default_factory=lambda: deque(maxlen=UNREAD_KEPT))
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
                    self.bytes -= data_bytes(waiting.data)
                    del self.unread[place]
                    break
        self.bytes += data_bytes(event.data)
        while self.unread and (self.bytes > UNREAD_BYTES or len(self.unread) == self.unread.maxlen):
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

    def _drop_oldest(self) -> None:
        self.bytes -= data_bytes(self.unread.popleft().data)


class Feeds:
    """Every client's feed, and the length of the queue, which everyone is told. epoch: of the scheduler's life."""

    def __init__(self, epoch: int) -> None:
        self._feeds: dict[str, Feed] = {}
        self._held: dict[str, Feed] = {}
        self._changed = asyncio.Event()
        # A version of an earlier life never comes back, so every reader sees that the count is another's.
        self.queue = QueueMark(epoch << 32, 0)

    def put(self, client_id: str, event: Event) -> None:
        """Add an event for a client, whether or not it is connected."""
        self._feed(client_id).put(event)
        self._wake()

    def hold(self, job_id: str, client_id: str) -> None:
        """Keep a job's events back until `release`."""
        feed = self._held[job_id] = self._feed(client_id)
        feed.held.add(job_id)

    def release(self, job_id: str) -> None:
        """Let a job's events go out."""
        if feed := self._held.pop(job_id, None):
            feed.held.discard(job_id)
            self._wake()

    def queue_is(self, remaining: int) -> None:
        """Tell everyone how many jobs have not ended."""
        self.queue = QueueMark(self.queue.version + 1, remaining)
        self._wake()

    def attach(self, client_id: str, token: str) -> Attached:
        """Let a socket read for a client from where its sockets are; the one before is replaced."""
        feed = self._feed(client_id)
        feed.token, feed.touched_s = token, time.monotonic()
        self._wake()
        return Attached(feed.sent, self.queue)

    async def news(self, readers: Mapping[str, Reader], queue: int, timeout_s: float) -> News:
        """Return what the readers have not sent, waiting for the first of it. queue: the version they know."""
        deadline = time.monotonic() + timeout_s
        while True:
            changed = self._changed
            news = self._now(readers)
            left = deadline - time.monotonic()
            if news.events or news.replaced or news.queue.version != queue or left <= 0:
                return news
            try:
                async with asyncio.timeout(left):
                    await changed.wait()
            except TimeoutError:
                return self._now(readers)

    def forget_idle(self) -> None:
        """Forget the feeds that nobody has touched for long, and more of them where all take too much memory."""
        limit = time.monotonic() - IDLE_S
        taken = sum(feed.bytes for feed in self._feeds.values())
        for client_id, feed in sorted(self._feeds.items(), key=lambda item: item[1].touched_s):
            if feed.touched_s < limit or (taken > FEEDS_BYTES and not feed.held):
                taken -= feed.bytes
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
        return self._feeds.setdefault(client_id, Feed())

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
