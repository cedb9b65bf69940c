"""The websockets of this process, and the one long poll of the scheduler that feeds them all.

The poll has the cursor of each socket: the last event that it has sent, which the scheduler counts as received. So the
next poll begins as soon as the sockets have sent the events of the last. A slow socket is left out of polls until it is
done.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from serve_app import log
from serve_app.api.comfy.jobs.frames import Frame, JobFrames, status, text_message
from serve_app.api.comfy.jobs.log_lines import SIZE, log_entries
from serve_app.errors import ServeAppError
from serve_app.events import Event
from serve_app.scheduler.protocol.client import Attached, QueueMark, Reader, UnsentEvents
from serve_app.service.service import Service
from serve_app.store.database.changes import feed_of
from serve_app.store.tenants.tenants import prompt_id_of

KEEPALIVE_S = 4.0
"""A client that receives nothing for ten seconds takes the connection for dead, so the queue's length is sent again."""
SOON_S = 0.05
"""How long the other sockets wait for one that is slow to send."""
STATUS_S = 0.1
"""How often clients are sent the queue's length when other clients' jobs change it."""
SEND_S = 30.0
"""How long a frame waits for a client that does not read; then the connection is closed."""
RETRY_S = 0.5
_log = log.get("api.websocket")

Send = Callable[[Frame], Awaitable[None]]


class Socket:
    """One client's connection.

    feed: the id of the client's stream of events. sent: the seq of the last event whose frames are sent. logs: whether
    it has subscribed to the log.
    """

    def __init__(self, client_id: str, send: Send, tenant: str = "") -> None:
        self.client_id, self.tenant, self.token = client_id, tenant, uuid.uuid4().hex
        self.feed = feed_of(tenant, client_id)
        self.sent = 0
        self.queue_version = -1
        self.spoke_s = time.monotonic()
        self.sending: asyncio.Task[None] | None = None
        self.features: dict[str, Any] = {}
        self.logs = False
        self.jobs: dict[str, JobFrames] = {}
        self.dropped = asyncio.Event()
        self._send = send

    async def send_frames(self, frames: Iterable[Frame]) -> None:
        """Send frames in order. Errors: TimeoutError for a client that does not read."""
        for sent in frames:
            async with asyncio.timeout(SEND_S):
                await self._send(sent)
            self.spoke_s = time.monotonic()

    async def send_queue(self, queue: QueueMark) -> None:
        """Send the queue's length."""
        self.queue_version = queue.version
        await self.send_frames([status(queue.left(self.tenant))])

    async def send_events(self, events: tuple[Event, ...], queue: QueueMark, *, held: bool) -> None:
        """Send events. A job's end is followed by the queue without it, and that by the end of its execution.

        held: as of `UnsentEvents`.
        """
        if queue.version != self.queue_version and not held and not any(event.last for event in events):
            await self.send_queue(queue)
        for event in events:
            job = self.jobs.setdefault(event.job_id, JobFrames(prompt_id_of(event.job_id)))
            await self.send_frames(job.frames(event, self.features))
            if self.logs and (lines := log_entries(event, job.started_s)):
                await self.send_frames([text_message("logs", {"entries": lines, "size": SIZE})])
            if event.last:
                await self.send_queue(queue)
                await self.send_frames(job.end())
                del self.jobs[event.job_id]
            self.sent = event.seq


class Subscriptions:
    """All sockets of this process, by feed. One poll, the operator's, serves all tenants.

    So ids of jobs are those of the whole server here (ID@TENANT); clients are sent their own.
    """

    def __init__(self) -> None:
        self._sockets: dict[str, Socket] = {}
        self._parted: dict[str, Reader] = {}
        self._joined = asyncio.Event()
        self.feeding: asyncio.Task[None] | None = None
        """What sends events to the sockets."""
        self._queue_version = -1
        self._queue_sent_s = float("-inf")

    async def join(self, socket: Socket, service: Service, attached: Attached) -> None:
        """Send a client its first messages and feed it from here on; an earlier socket of the client gets nothing
        more.
        """
        socket.sent, socket.queue_version = attached.after, attached.queue.version
        if (earlier := self._sockets.pop(socket.feed, None)) is not None:
            if earlier.sending is not None:
                earlier.sending.cancel()
            socket.sent = max(socket.sent, earlier.sent)
        if (parted := self._parted.pop(socket.feed, None)) is not None:
            socket.sent = max(socket.sent, parted.after)
        await socket.send_frames([status(attached.queue.left(socket.tenant), socket.client_id)])
        everyones = service.for_tenant("")
        await self._catch_up(socket, everyones, attached.running)
        self._sockets[socket.feed] = socket
        self._joined.set()
        if self.feeding is None or self.feeding.done():
            self.feeding = asyncio.create_task(self._feed(everyones))

    def leave(self, socket: Socket) -> None:
        """Stop feeding a socket; the next poll has its last cursor."""
        if self._sockets.get(socket.feed) is socket:
            del self._sockets[socket.feed]
            self._parted[socket.feed] = Reader(socket.token, socket.sent)
            self._joined.set()

    def log_to(self, feed: str, *, wanted: bool) -> None:
        """Switch a client's log on or off, if its socket is in this process."""
        if feed in self._sockets:
            self._sockets[feed].logs = wanted

    async def _catch_up(self, socket: Socket, service: Service, running: Iterable[str]) -> None:
        """Rebuild from earlier events the state of the client's running jobs, and send it."""
        for job_id in running:
            job = await _job_frames(service, job_id, socket.sent)
            socket.jobs[job_id] = job
            if job.running:
                await socket.send_frames([job.state()])

    async def _feed(self, service: Service) -> None:
        while self._sockets or self._parted:
            try:
                if (unsent := await self._next_events(service)) is not None:
                    await self._deliver(unsent, service)
            except ServeAppError as error:
                _log.info("sockets wait: %s", error)
                await asyncio.sleep(RETRY_S)

    async def _next_events(self, service: Service) -> UnsentEvents | None:
        """Poll for events; None if a socket has joined, left or caught up meanwhile, so that another poll is due."""
        self._joined.clear()
        parted, self._parted = self._parted, {}
        free = [socket for socket in self._sockets.values() if socket.sending is None]
        readers = parted | {socket.feed: Reader(socket.token, socket.sent) for socket in free}
        wait_s = KEEPALIVE_S / 2
        if any(socket.queue_version != self._queue_version for socket in free):
            wait_s = max(0.0, self._queue_sent_s + STATUS_S - time.monotonic())
        asked = asyncio.ensure_future(service.unsent_events(readers, self._queue_version, 0.0 if parted else wait_s))
        joined = asyncio.ensure_future(self._joined.wait())
        try:
            await asyncio.wait({asked, joined}, return_when=asyncio.FIRST_COMPLETED)
            # The last cursors of sockets that have left must reach the scheduler: no later poll has them.
            return await asked if asked.done() or parted else None
        except ServeAppError:
            self._parted = parted | self._parted
            raise
        finally:
            asked.cancel()
            joined.cancel()

    async def _deliver(self, unsent: UnsentEvents, service: Service) -> None:
        for feed in unsent.replaced:
            self._sockets.pop(feed, None)
        tellings = []
        self._queue_version, now_s = unsent.queue.version, time.monotonic()
        if due := now_s - self._queue_sent_s >= STATUS_S:
            self._queue_sent_s = now_s
        for socket in list(self._sockets.values()):
            events = unsent.events.get(socket.feed, ())
            if socket.sending is None:
                held = socket.feed in unsent.held
                silent = now_s - socket.spoke_s > KEEPALIVE_S / 2
                if events or (not held and (silent or (due and unsent.queue.version != socket.queue_version))):
                    socket.sending = asyncio.create_task(
                        self._send_events(socket, service, events, unsent, silent=silent)
                    )
                    tellings.append(socket.sending)
        if tellings:
            await asyncio.wait(tellings, timeout=SOON_S)

    async def _send_events(
        self, socket: Socket, service: Service, events: tuple[Event, ...], unsent: UnsentEvents, *, silent: bool
    ) -> None:
        try:
            for event in _unknown(socket, events):
                socket.jobs[event.job_id] = await _job_frames(service, event.job_id, event.seq - 1)
            events = await _with_images(events, service)
            if silent and not events:
                await socket.send_queue(unsent.queue)
            else:
                await socket.send_events(events, unsent.queue, held=socket.feed in unsent.held)
        except Exception as error:
            # The connection is gone, or its client does not read; it may reconnect and get the rest.
            _log.info("client %s: %r", socket.client_id, error)
            self.leave(socket)
            socket.dropped.set()
        finally:
            socket.sending = None
            self._joined.set()


async def _with_images(events: tuple[Event, ...], service: Service) -> tuple[Event, ...]:
    """Return the events with their previews' images; an event whose image is lost is left out."""
    found: list[Event] = []
    for event in events:
        if event.kind != "preview":
            found.append(event)
        elif (image := await service.fetch(event.data["image"])) is not None:
            found.append(replace(event, data={**event.data, "image": image}))
    return tuple(found)


def _unknown(socket: Socket, events: tuple[Event, ...]) -> Iterator[Event]:
    """Yield the first event of each job that the socket has not followed from its start."""
    seen = set(socket.jobs)
    for event in events:
        if event.job_id not in seen and event.kind not in ("queued", "started"):
            yield event
        seen.add(event.job_id)


async def _job_frames(service: Service, job_id: str, until: int) -> JobFrames:
    """Return the frames' state of a job after the event with this seq."""
    job = JobFrames(prompt_id_of(job_id))
    try:
        known = (await service.events(job_id, 0, 0.0)).events
    except ServeAppError:
        return job
    for event in known:
        if event.seq <= until:
            list(job.frames(event))
    return job
