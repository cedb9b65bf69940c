"""What handlers of both dialects share: the service, a request's body as strict JSON, a number from its query.

Bodies are read as JSON whatever their content type, and no further than the limit.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from starlette.requests import HTTPConnection, Request
from starlette.types import Message

from serve_app.api.auth.principal import principal_of
from serve_app.api.routing import Given
from serve_app.api.strict_json import parse_object
from serve_app.errors import BodyTooLargeError, InvalidSubmissionError, QuotaLeft
from serve_app.limits import refused
from serve_app.scheduler.protocol.client import QueueView
from serve_app.service.request_limits import BodyBound
from serve_app.service.service import Service, Submitted

T = TypeVar("T")


def service_of(request: HTTPConnection) -> Service:
    """Return the service as who asks has it. Errors: NotReadyError before the process has found the scheduler."""
    service: Service = request.app.state.service()
    return service.within(principal_of(request).tenant)


Current = Annotated[Service, Given(service_of)]
"""The service as who asks has it, as a handler's parameter."""

REQUESTS_LEFT = "requests_left"
"""The key of an ASGI scope that says how many requests more there may be now, as QuotaLeft or None."""
_LARGE_BYTES = 100_000
_BIGGEST = 2**63


def quota_headers(request: Request, submitted: Submitted) -> dict[str, str]:
    """Return what an accepted submission is told of its tenant's quotas: that of which the smallest share is left."""
    requests: QuotaLeft | None = request.scope.get(REQUESTS_LEFT)
    left = [*submitted.left, *([] if requests is None else [requests])]
    return min(left, key=lambda each: each.share).headers if left else {}


async def read_body(request: Request, bound: BodyBound) -> bytes:
    """Return the body. Errors: BodyTooLargeError as soon as it is larger than its bound."""
    return await bounded(request, bound).body()


def bounded(request: Request, bound: BodyBound) -> Request:
    """Return the request with its body held to a bound, which whoever reads it is told by BodyTooLargeError."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > bound.bytes):
        raise _too_large(f"is {declared[:20]} bytes", bound)
    read = 0

    async def receive() -> Message:
        nonlocal read
        message = await request.receive()
        read += len(message.get("body", b""))
        if read > bound.bytes:
            raise _too_large("is larger", bound)
        return message

    return Request(request.scope, receive)


def _too_large(how: str, bound: BodyBound) -> BodyTooLargeError:
    refused(bound.key)
    return BodyTooLargeError(f"the body {how}; {bound.key} of the configuration allows {bound.bytes} bytes")


async def read_object(request: Request, bound: BodyBound) -> dict[str, Any]:
    """Return the body as a JSON object. Errors: BodyTooLargeError, InvalidSubmissionError."""
    return await parsed(await read_body(request, bound), parse_object)


async def parsed(body: bytes, parse: Callable[[bytes], T]) -> T:
    """Return what `parse` makes of a body; seconds of parsing do not hold up the other requests of this process."""
    return parse(body) if len(body) < _LARGE_BYTES else await asyncio.to_thread(parse, body)


def lengths(queue: QueueView) -> dict[str, str]:
    """Return the headers that tell how long the queue is, of which an answer may carry the beginning only.

    They say too what of it is paused, if anything is, and for how long jobs wait because one has ended a replica.
    """
    told = {"X-Queue-Running": str(queue.count.running), "X-Queue-Pending": str(queue.count.pending)}
    if queue.paused:
        told["X-Queue-Paused"] = ", ".join(map(str, queue.paused))
    if queue.wait_s > 0:
        told["X-Queue-Backoff"] = str(math.ceil(queue.wait_s))
    return told


def number(request: Request, name: str, kind: type[int] | type[float], default: float) -> float:
    """Return a number ≥ 0 of that kind from the query. Errors: InvalidSubmissionError."""
    text = request.query_params.get(name, str(default))
    try:
        value = kind(text)
    except ValueError:
        value = -1
    if not 0 <= value < _BIGGEST:
        raise InvalidSubmissionError(f"{name}={text[:80]} must be {'a whole' if kind is int else 'a'} number from 0")
    return value
