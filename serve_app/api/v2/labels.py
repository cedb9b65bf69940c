"""The labels of jobs, which v2 calls metadata: in submissions, and as filters of lists.

Source: the description of `metadata` at comfy-sdk 0.5.0 and docs.comfy.org/api-reference/v2, "List jobs".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from serve_app.api.v2.failures import CodedError
from serve_app.errors import short_repr

PAIRS, KEY_LENGTH, VALUE_BYTES, FILTERS = 16, 40, 256, 3

_KEY = re.compile(rf"[A-Za-z0-9_.-]{{1,{KEY_LENGTH}}}")
_FORBIDDEN = re.compile("[\0-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_FILTER = re.compile(r"metadata\[(?P<key>.*)\]", re.DOTALL)
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


def labels(given: Any) -> dict[str, str]:
    """Return the labels of a submission; {} for None. Errors: CodedError metadata_invalid."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise CodedError("metadata_invalid", f"'metadata' must be an object of strings, not {short_repr(given)}")
    if len(given) > PAIRS:
        raise CodedError("metadata_invalid", f"'metadata' has {len(given)} pairs; {PAIRS} are allowed")
    for key, value in given.items():
        if wrong := _wrong(key, value):
            raise CodedError("metadata_invalid", f"'metadata' {wrong}")
    return dict(given)


def filters(query: bytes) -> tuple[dict[str, str], dict[str, str]]:
    """Return the labels to filter by in a raw query, and its other parameters.

    Errors: CodedError invalid_metadata_filter, and invalid_request for another parameter given twice.
    """
    text = query.decode("latin-1")
    if ";" in text or _BAD_PERCENT.search(text):
        raise _refused("the query has a raw ';' or a '%' that is no escape")
    wanted: dict[str, str] = {}
    others: dict[str, str] = {}
    for pair in filter(None, text.split("&")):
        name, value = map(_decoded, (pair.partition("=")[0], pair.partition("=")[2]))
        if (found := _FILTER.fullmatch(name)) is None:
            if name.startswith("metadata"):
                raise _refused(f"{short_repr(name)} is no filter; a filter is metadata[KEY]=VALUE")
            if name in others:
                raise CodedError("invalid_request", f"the query has {short_repr(name)} twice")
            others[name] = value
            continue
        key = found["key"]
        if wrong := _wrong(key, value):
            raise _refused(wrong)
        if key in wanted:
            raise _refused(f"key {short_repr(key)} is there twice")
        wanted[key] = value
    if len(wanted) > FILTERS:
        raise _refused(f"{len(wanted)} filters are given; {FILTERS} are allowed")
    return wanted, others


def _refused(why: str) -> CodedError:
    return CodedError("invalid_metadata_filter", why)


def _decoded(text: str) -> str:
    try:
        return unquote_to_bytes(text.replace("+", " ").encode("latin-1")).decode()
    except UnicodeDecodeError:
        raise _refused("the query is not UTF-8") from None


def _wrong(key: str, value: Any) -> str | None:
    """Return what is wrong with a pair, or None."""
    if not _KEY.fullmatch(key):
        return f"key {short_repr(key)} must be 1 to {KEY_LENGTH} of A-Z a-z 0-9 _ . -"
    if not isinstance(value, str):
        return f"value of {key} must be a string, not {short_repr(value)}"
    if _FORBIDDEN.search(value):
        return f"value of {key} has a control or direction character"
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        return f"value of {key} has half a surrogate pair, which is no Unicode text"
    return f"value of {key} has {size} bytes; {VALUE_BYTES} are allowed" if size > VALUE_BYTES else None
