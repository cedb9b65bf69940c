"""The event stream of a job in v2: its current state, then its events, until its end.

Server-sent events (WHATWG HTML, section 9.2) without ids: a client that reconnects gets the current state again. All is
read from the scheduler's stream of the job, so every ingress replica sends the same.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve_app.api.concurrency_limits import ConcurrencyLimit
from serve_app.api.limited_stream import NOT_BUFFERED, LimitedStream
from serve_app.api.request import Current
from serve_app.api.routing import Routes
from serve_app.api.v2.failures import CodedError
from serve_app.api.v2.jobs import job
from serve_app.api.v2.outputs import outputs_of
from serve_app.api.v2.shapes import STATES, progress_shape
from serve_app.errors import ConcurrencyLimitError, JobMissingError, UnavailableError
from serve_app.events import ENDINGS, Event
from serve_app.scheduler.protocol.client import JobView
from serve_app.service.service import JobEvents, Service
from serve_app.store.tenants.tenants import prompt_id_of

router = Routes()

HEARTBEAT_S = 10.0
"""How long a stream may be silent. Clients take 45 s of silence for its end, proxies less."""
PROGRESS_S = 0.5
"""The shortest time between two progress events."""
MOVES_S = 2.0
"""How often the queue position of a waiting job is checked."""
PING = ": ping\n\n"

_STATES = {"queued": "queued", "started": "running", **{kind: kind for kind in ENDINGS}}
"""The state of a job after an event."""
_MOVING = frozenset({"cached", "executing", "progress", "finished", "executed"})
"""Events that change a job's progress."""


@router.on("/jobs/{job_id}/events", ["GET"])
async def get_events(request: Request, service: Current) -> Response:
    """Stream a job's events until it has ended."""
    view = await job(service, request.path_params["job_id"])
    if request.method == "HEAD":
        # A stream would last as long without a body, and the connection's next request would wait for it.
        return Response(media_type=_Stream.media_type, headers=NOT_BUFFERED)
    return _Stream(_JobStream(request, service, view).frames(), request.app.state.concurrency.listeners)


class _Stream(LimitedStream):
    """A response of server-sent events that counts against a limit while it lasts."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncGenerator[str], limit: ConcurrencyLimit) -> None:
        super().__init__(frames, limit, headers=NOT_BUFFERED)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the frames. Errors: CodedError too_many_streams, before anything is sent."""
        try:
            await super().__call__(scope, receive, send)
        except ConcurrencyLimitError as error:
            raise CodedError(
                "too_many_streams", str(error), headers={"Retry-After": str(error.retry_after_s)}
            ) from error


class _JobStream:
    """Converts a job's events to server-sent events for one client."""

    def __init__(self, request: Request, service: Service, view: JobView) -> None:
        self._request, self._service, self._job_id = request, service, view.job_id
        self._owner = service.for_tenant(view.tenant)
        self._cursor = 0
        self._state = "queued"
        self._position: int | None = None
        self._moved = False
        self._progress_s = float("-inf")
        self._previewed = 0

    async def frames(self) -> AsyncGenerator[str]:
        """Yield the frames: the job's state, its events, and a comment as heartbeat.

        The last is the job's final status. If the scheduler is away for too long, the stream ends without it.
        """
        try:
            known = await self._service.events(self._job_id, 0, 0.0)
            self._take(known.events)
            if self._state in ENDINGS:  # clients stop reading at the final status
                async for frame in self._outputs(known.events):
                    yield frame
            yield await self._status()
            if self._state in ENDINGS:
                return
            if self._state == "running":
                yield await self._progress()
            async for frame in self._outputs(known.events):
                yield frame
            while self._state not in ENDINGS:
                poll = asyncio.ensure_future(self._poll())
                try:
                    while not (await asyncio.wait({poll}, timeout=HEARTBEAT_S))[0]:
                        yield PING
                    found = await poll
                finally:
                    poll.cancel()
                async for frame in self._frames_of(found.events):
                    yield frame
        except (UnavailableError, JobMissingError):
            return

    async def _poll(self) -> JobEvents:
        """Wait for the next events, or until a check of position or progress is due."""
        wait_s = HEARTBEAT_S
        if self._state == "queued":
            wait_s = MOVES_S
        elif self._moved:
            wait_s = max(0.0, self._progress_s + PROGRESS_S - time.monotonic())
        return await self._service.events(self._job_id, self._cursor, wait_s)

    async def _frames_of(self, events: Sequence[Event]) -> AsyncGenerator[str]:
        before = self._state
        async for frame in self._outputs(events):
            yield frame
        self._take(events)
        if self._state != before:
            yield await self._status()
        elif self._state == "queued":
            progress = await self._service.progress(self._job_id)
            if progress is not None and progress.position not in (None, self._position):
                yield await self._status()
        if self._state == "running" and self._moved and time.monotonic() >= self._progress_s + PROGRESS_S:
            yield await self._progress()

    async def _outputs(self, events: Sequence[Event]) -> AsyncGenerator[str]:
        shown = {event.data["node"]: event.data["output"] for event in events if event.kind == "executed"}
        for output in await outputs_of(self._request, self._owner, prompt_id_of(self._job_id), shown):
            yield _frame("output", output)

    def _take(self, events: Sequence[Event]) -> None:
        for event in events:
            self._cursor = event.seq
            self._state = _STATES.get(event.kind, self._state)
            self._moved = self._moved or event.kind in _MOVING

    async def _status(self) -> str:
        progress = await self._service.progress(self._job_id) if self._state == "queued" else None
        self._position = None if progress is None else progress.position
        return _frame("status", {"status": STATES[self._state], "queue_position": self._position})

    async def _progress(self) -> str:
        """Return the job's progress and newest preview; "" once it has ended, as its final status follows."""
        self._moved, self._progress_s = False, time.monotonic()
        progress = await self._service.progress(self._job_id)
        if progress is None:
            return ""
        return _frame("progress", progress_shape(progress)) + await self._preview(progress.preview)

    async def _preview(self, newest: int) -> str:
        """Return the job's newest preview, "" if it has been sent. newest: its cursor."""
        if newest <= self._previewed:
            return ""
        self._previewed = newest
        if (found := await self._service.preview(self._job_id)) is None:
            return ""
        node_id, image = found
        data = base64.b64encode(image).decode()
        return _frame("preview", {"node_id": node_id, "content_type": "image/jpeg", "data_base64": data})


def _frame(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
