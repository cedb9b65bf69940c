"""Request bodies and empty answers of the native dialect: any JSON, whatever the content type says."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.request import parse_in_thread, read_body
from serve_app.api.strict_json import parse_value
from serve_app.errors import InvalidSubmissionError, short_repr
from serve_app.limits import refused
from serve_app.service.request_limits import BodyBound


def empty(status_code: int = 200) -> Response:
    """Return ComfyUI's empty answer: no body, no content type."""
    return Response(status_code=status_code)


async def read_json(request: Request, bound: BodyBound) -> Any:
    """Return the body as a JSON value of any kind. Errors: BodyTooLargeError, InvalidSubmissionError."""
    return await parse_in_thread(await read_body(request, bound), parse_value)


async def read_members(request: Request, bound: BodyBound) -> dict[str, Any]:
    """Return the body as a JSON object; {} for an empty body. Errors: as `read_json`."""
    body = await read_body(request, bound)
    value = await parse_in_thread(body, parse_value) if body.strip() else {}
    if not isinstance(value, dict):
        raise InvalidSubmissionError(f"the body must be a JSON object, not {short_repr(value)}")
    return value


def ids(members: dict[str, Any], key: str, most: int) -> list[str]:
    """Return a list of ids in a body; [] without one. Errors: InvalidSubmissionError for too many."""
    value = members.get(key)
    if isinstance(value, list) and len(value) > most:
        raise too_many_ids(key, len(value), most)
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def too_many_ids(key: str, given: int, most: int) -> InvalidSubmissionError:
    """Return the error for a list of more jobs than one request may name."""
    refused("ingress.max_ids")
    return InvalidSubmissionError(f"'{key}' names {given} jobs; ingress.max_ids of the configuration allows {most}")
