"""Credentials that a client sends with a job for its nodes, kept out of answers, events, logs and the database."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

CREDENTIALS: frozenset[str] = frozenset({"auth_token_comfy_org", "api_key_comfy_org"})
"""Members of `extra_data` that nodes may need: no answer shows them, and only the scheduler's memory keeps them.

They are lost with it: of a job that a later scheduler goes on with, nodes are given none.
"""

HIDDEN = "[credential]"
SHORTEST = 6
"""Shorter values are no secrets; they would be found in every other word."""


def without_credentials(extra_data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job's `extra_data` without credentials, for answers and the database."""
    return {key: value for key, value in extra_data.items() if key not in CREDENTIALS}


def scrubbed(value: Any, extra_data: Mapping[str, Any]) -> Any:
    """Return JSON data without the values of a job's credentials, as they are or as Python and JSON quote them."""
    secrets = {text for key in CREDENTIALS for text in _texts(extra_data.get(key)) if len(text) >= SHORTEST}
    quoted = {form for text in secrets for form in (text, repr(text)[1:-1], json.dumps(text)[1:-1])}
    return _replaced(value, sorted(quoted, key=len, reverse=True)) if quoted else value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for child in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(child)


def _replaced(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, HIDDEN)
        return value
    if isinstance(value, Mapping):
        return {_replaced(key, secrets): _replaced(child, secrets) for key, child in value.items()}
    if isinstance(value, list | tuple):
        children = (_replaced(child, secrets) for child in value)
        return list(children) if isinstance(value, list) else tuple(children)
    return value
