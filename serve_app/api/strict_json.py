"""Strict JSON: values that other parsers could read differently are refused, and never written.

Source: RFC 8259; RFC 7493 (I-JSON) for what is refused.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

from starlette.responses import Response

from serve_app.errors import InvalidSubmissionError

NESTING = 100
"""How deep the values of a body may be nested; far above any workflow, far below Python's recursion limit."""


def encode_json(content: Any) -> bytes:
    """Return JSON in ASCII. Nodes' values may hold NaN or half a surrogate pair: null and an escape stand for them."""
    try:
        text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    except ValueError:
        finite = json.loads(json.dumps(content), parse_constant=lambda _: None)
        text = json.dumps(finite, separators=(",", ":"))
    return text.encode("ascii")


class JsonResponse(Response):
    """A JSON response, encoded by `encode_json`."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the text in ASCII."""
        return encode_json(content)


class JsonTextResponse(Response):
    """A JSON response of text that `encode_json` has encoded already."""

    media_type = "application/json"


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in UTF-8 bytes. Errors: as `parse_value`, InvalidSubmissionError for any other value."""
    value = parse_value(body)
    if not isinstance(value, dict):
        kind = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(type(value), "a number")
        raise InvalidSubmissionError(f"the body must be a JSON object with the key 'prompt', not {kind}")
    return value


def parse_value(body: bytes) -> Any:
    """Return the JSON value in UTF-8 bytes. Errors: InvalidSubmissionError with the position of the error.

    Stricter than `json`: no NaN or infinity (also not by overflow, 1e999), no key twice in one object, no half of a
    surrogate pair; none of these survives a round trip. Source: RFC 8259, RFC 7493 (I-JSON).
    """
    try:
        text = body.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise InvalidSubmissionError(f"the body is not JSON: {error.msg} at {where}") from error
    except UnicodeDecodeError as error:
        raise InvalidSubmissionError(f"the body is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except UnicodeEncodeError as error:
        half = hex(ord(error.object[error.start]))[2:]
        raise InvalidSubmissionError(f"the body holds \\u{half}, half of a surrogate pair") from error
    except RecursionError as error:
        raise InvalidSubmissionError(f"the body is nested more than {NESTING} levels deep") from error
    except ValueError as error:  # an integer with more digits than Python reads
        raise InvalidSubmissionError(f"the body holds a number that is too long: {error}") from error
    _check_nesting(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise InvalidSubmissionError(f"the key '{twice[:80]}' appears twice in one object")
    return members


def _check_nesting(value: Any) -> None:
    level: list[Any] = [value] if isinstance(value, dict | list) else []
    for _ in range(NESTING):
        children = (child for item in level for child in (item.values() if isinstance(item, dict) else item))
        level = [child for child in children if isinstance(child, dict | list)]
        if not level:
            return
    raise InvalidSubmissionError(f"the body is nested more than {NESTING} levels deep")


def _refuse_constant(name: str) -> float:
    raise InvalidSubmissionError(f"the body is not JSON: {name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise InvalidSubmissionError(f"the number {text[:80]} is beyond the range of a double")
    return value
