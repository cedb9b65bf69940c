"""A job's events as v2 streams them: what it is at this moment, then what happens, until its end.

Server-sent events (WHATWG HTML, section 9.2) without ids: a client that is cut off connects again and is told how
things stand. All is read from the scheduler's stream of the job, so every ingress replica tells the same.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from serve_app.api.concurrency_limits import Room
from serve_app.api.request import Current
from serve_app.api.routing import Routes
from serve_app.api.v2.failures import CodedError
from serve_app.api.v2.jobs import job
from serve_app.api.v2.outputs import outputs_of
from serve_app.api.v2.shapes import STATES, progress_shape
from serve_app.errors import CrowdedError, JobMissingError, UnavailableError
from serve_app.events import ENDINGS, Event
from serve_app.scheduler.protocol.client import JobView
from serve_app.service.service import JobEvents, Service
from serve_app.store.tenants.tenants import prompt_id_of

router = Routes()

HEARTBEAT_S = 10.0
"""How long a stream may be silent. Clients take 45 s of silence for its end, proxies less."""
PROGRESS_S = 0.5
"""How long after a progress the next is told."""
MOVES_S = 2.0
"""How often it is looked whether a job that waits has moved up."""
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
PING = ": ping\n\n"

_STATES = {"queued": "queued", "started": "running", **{kind: kind for kind in ENDINGS}}
"""The state of a job by the event that brings it there."""
_MOVING = frozenset({"cached", "executing", "progress", "finished", "executed"})
"""Events after which a job's progress is another."""


@router.on("/jobs/{job_id}/events", ["GET"])
async def get_events(request: Request, service: Current) -> Response:
    """Stream a job's events until it has ended."""
    view = await job(service, request.path_params["job_id"])
    if request.method == "HEAD":
        # A stream would last as long without a body, and the connection's next request wait for it.
        return Response(media_type=_Stream.media_type, headers=HEADERS)
    return _Stream(_Told(request, service, view).frames(), request.app.state.crowd.listeners)


class _Stream(StreamingResponse):
    """Frames as a response that has a place in the room for as long as it lasts."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncGenerator[str], room: Room) -> None:
        super().__init__(frames, headers=HEADERS)
        self._room = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the frames. Errors: CodedError too_many_streams, before anything is sent."""
        try:
            with self._room.taken():
                await super().__call__(scope, receive, send)
        except CrowdedError as error:
            raise CodedError(
                "too_many_streams", str(error), headers={"Retry-After": str(error.retry_after_s)}
            ) from error


class _Told:
    """One job as one client is told of it."""

    def __init__(self, request: Request, service: Service, view: JobView) -> None:
        self._request, self._service, self._job_id = request, service, view.job_id
        self._owner = service.within(view.tenant)
        self._cursor = 0
        self._state = "queued"
        self._position: int | None = None
        self._moved = False
        self._progress_s = float("-inf")
        self._previewed = 0

    async def frames(self) -> AsyncGenerator[str]:
        """Yield the frames: how the job stands, what happens, and a comment where nothing has for a while.

        The last is the status that ends the job. If the scheduler is away for too long, the stream ends without it.
        """
        try:
            known = await self._service.events(self._job_id, 0, 0.0)
            self._take(known.events)
            if self._state in ENDINGS:  # clients read no further than the status that says so
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
                async for frame in self._news(found.events):
                    yield frame
        except (UnavailableError, JobMissingError):
            return

    async def _poll(self) -> JobEvents:
        """Wait for the next events, or until something is due without one."""
        wait_s = HEARTBEAT_S
        if self._state == "queued":
            wait_s = MOVES_S
        elif self._moved:
            wait_s = max(0.0, self._progress_s + PROGRESS_S - time.monotonic())
        return await self._service.events(self._job_id, self._cursor, wait_s)

    async def _news(self, events: Sequence[Event]) -> AsyncGenerator[str]:
        before = self._state
        async for frame in self._outputs(events):
            yield frame
        self._take(events)
        if self._state != before:
            yield await self._status()
        elif self._state == "queued":
            standing = await self._service.standing(self._job_id)
            if standing is not None and standing.position not in (None, self._position):
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
        standing = await self._service.standing(self._job_id) if self._state == "queued" else None
        self._position = None if standing is None else standing.position
        return _frame("status", {"status": STATES[self._state], "queue_position": self._position})

    async def _progress(self) -> str:
        """Return how far the job has come, and its newest picture; nothing once it has ended, which is told next."""
        self._moved, self._progress_s = False, time.monotonic()
        standing = await self._service.standing(self._job_id)
        if standing is None:
            return ""
        return _frame("progress", progress_shape(standing)) + await self._preview(standing.preview)

    async def _preview(self, newest: int) -> str:
        """Return the newest picture of the job, unless it has been told. newest: its cursor."""
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
