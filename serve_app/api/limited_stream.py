"""Long answers that are streamed, each of which counts against a limit while it lasts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve_app.api.concurrency_limits import ConcurrencyLimit

NOT_BUFFERED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Headers of an answer that proxies pass on piece by piece."""


class LimitedStream(StreamingResponse):
    """A streamed response that counts against a limit while it lasts. pieces: its body."""

    def __init__(self, pieces: AsyncIterator[str], limit: ConcurrencyLimit, **others: Any) -> None:
        super().__init__(pieces, **others)
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the pieces. Errors: ConcurrencyLimitError, before anything is sent."""
        with self._limit.acquire():
            await super().__call__(scope, receive, send)
