"""What handlers of all dialects share: the service, a request's body as strict JSON, a number in its query.

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
from serve_app.api.routing import Depends
from serve_app.api.strict_json import parse_object
from serve_app.errors import BodyTooLargeError, InvalidSubmissionError, QuotaLeft
from serve_app.limits import refused
from serve_app.scheduler.protocol.client import QueueView
from serve_app.service.request_limits import BodyBound
from serve_app.service.service import Service, Submitted

T = TypeVar("T")


def service_of(request: HTTPConnection) -> Service:
    """Return the service for the request's tenant. Errors: NotReadyError before the process has found the scheduler."""
    service: Service = request.app.state.service()
    return service.for_tenant(principal_of(request).tenant)


Current = Annotated[Service, Depends(service_of)]
"""The service for the request's tenant, as a handler's parameter."""

REQUESTS_LEFT = "requests_left"
"""The ASGI scope's key of what is left of the quota of requests: a QuotaLeft or None."""
_LARGE_BYTES = 100_000
_BIGGEST = 2**63


def quota_headers(request: Request, submitted: Submitted) -> dict[str, str]:
    """Return the quota headers of an accepted submission: of the quota with the smallest share left."""
    requests: QuotaLeft | None = request.scope.get(REQUESTS_LEFT)
    left = [*submitted.left, *([] if requests is None else [requests])]
    return min(left, key=lambda each: each.share).headers if left else {}


async def read_body(request: Request, bound: BodyBound) -> bytes:
    """Return the body. Errors: BodyTooLargeError as soon as it exceeds the bound."""
    return await with_body_bound(request, bound).body()


def with_body_bound(request: Request, bound: BodyBound) -> Request:
    """Return the request with a bound on its body. Reading a larger one raises BodyTooLargeError."""
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
    return await parse_in_thread(await read_body(request, bound), parse_object)


async def parse_in_thread(body: bytes, parse: Callable[[bytes], T]) -> T:
    """Return `parse(body)`, run in a thread if the body is large, so that it does not block other requests."""
    return parse(body) if len(body) < _LARGE_BYTES else await asyncio.to_thread(parse, body)


def queue_headers(queue: QueueView) -> dict[str, str]:
    """Return headers with the queue's full length, as an answer may have its beginning only.

    They also name what is paused, and how long jobs wait because one has ended a replica.
    """
    told = {"X-Queue-Running": str(queue.count.running), "X-Queue-Pending": str(queue.count.pending)}
    if queue.paused:
        told["X-Queue-Paused"] = ", ".join(map(str, queue.paused))
    if queue.wait_s > 0:
        told["X-Queue-Backoff"] = str(math.ceil(queue.wait_s))
    return told


def query_number(request: Request, name: str, kind: type[int] | type[float], default: float) -> float:
    """Return a number ≥ 0 in the query. Errors: InvalidSubmissionError."""
    text = request.query_params.get(name, str(default))
    try:
        value = kind(text)
    except ValueError:
        value = -1
    if not 0 <= value < _BIGGEST:
        raise InvalidSubmissionError(f"{name}={text[:80]} must be {'a whole' if kind is int else 'a'} number from 0")
    return value
