"""What handlers take from a request: the service, its body as strict JSON, a number from its query.

Bodies are read as JSON whatever their content type, and no further than the limit.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import Depends, Request

from serve_app.api.strict_json import parse_object
from serve_app.errors import BodyTooLargeError, InvalidSubmissionError
from serve_app.service import Service


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service()
    return service


Current = Annotated[Service, Depends(_service)]
"""The service of this process, as a handler's parameter."""

READ = ["GET", "HEAD"]
"""The methods of a route that reads."""

_LARGE_BYTES = 100_000
_BIGGEST = 2**63


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """Return the body. Errors: BodyTooLargeError as soon as it is larger than the limit."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit_bytes:
        raise BodyTooLargeError(f"the body is {declared} bytes; at most {limit_bytes} are read")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise BodyTooLargeError(f"the body is larger than the {limit_bytes} bytes that are read")
    return bytes(body)


async def read_object(request: Request, limit_bytes: int) -> dict[str, Any]:
    """Return the body as a JSON object. Errors: BodyTooLargeError, InvalidSubmissionError."""
    body = await read_body(request, limit_bytes)
    if len(body) < _LARGE_BYTES:
        return parse_object(body)
    # Seconds of parsing must not hold up the other requests of this process.
    return await asyncio.to_thread(parse_object, body)


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
