"""A stored file as an HTTP answer: streamed in chunks, with conditional and range requests, or as a link to the store.

Source: RFC 9110, sections 8.8 (validators), 13 (conditional requests) and 14 (range requests). One range a request;
several are answered with the whole file, as section 14.2 allows.
"""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from typing import BinaryIO

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve_app.api.files.content import DISARMED
from serve_app.api.problems import problem
from serve_app.errors import FileMissingError
from serve_app.service.service import Service
from serve_app.store.files.store import AREAS, FileRef, FileStat

CHUNK_BYTES = 256 * 1024

_ANNOTATION = re.compile(r"(?P<filename>.*?) ?\[(?P<area>input|output|temp)\]", re.DOTALL)
_RANGE = re.compile(r"bytes=[ \t]*(?P<first>\d{0,19})-(?P<last>\d{0,19})[ \t]*", re.IGNORECASE | re.ASCII)


def file_ref(filename: str, subfolder: str, area: str) -> FileRef:
    """Return the file that a client names; a filename that ends in " [output]" (input, temp) overrides the area.

    Errors: FileMissingError for a missing name or an unknown area.
    """
    if annotated := _ANNOTATION.fullmatch(filename):
        filename, area = annotated["filename"], annotated["area"]
    for known in AREAS:
        if known == area:
            if not filename:
                raise FileMissingError("no filename is given")
            return FileRef(known, subfolder, filename)
    raise FileMissingError(f"type '{area[:80]}' is not a directory; allowed are {', '.join(AREAS)}")


async def stored_file(
    service: Service, ref: FileRef, content_type: str, disposition: str, method: str, headers: Headers
) -> Response:
    """Return the answer to GET or HEAD for a stored file. Errors: FileMissingError."""
    stat = await service.stat(ref)
    shown = {
        "ETag": f'"{stat.etag}"',
        "Last-Modified": _http_date(stat.modified_s),
        "Cache-Control": "no-cache",
        "Accept-Ranges": "bytes",
    }
    if _unchanged(headers, stat):
        return Response(status_code=304, headers=shown)
    # A link is signed for one method and expires, so the answer must not be cached.
    if method == "GET" and (link := await service.link(ref, content_type, disposition)) is not None:
        return Response(status_code=307, headers={"Location": link, "Cache-Control": "no-store"})
    sent, status_code = range(stat.size), 200
    # HEAD has no body to take a part of: section 14.2 defines Range for GET only.
    if method == "GET" and _range_holds(headers, stat):
        asked = _asked_range(headers.get("range", ""), stat.size)
        if asked is not None and not asked:
            detail = f"{headers['range'][:80]} is outside the file's {stat.size} bytes"
            return problem(416, "Range not satisfiable", detail, {"Content-Range": f"bytes */{stat.size}"})
        if asked is not None:
            sent, status_code = asked, 206
            shown["Content-Range"] = f"bytes {sent[0]}-{sent[-1]}/{stat.size}"
    shown |= {
        "Content-Type": content_type,
        "Content-Length": str(len(sent)),
        "Content-Disposition": disposition,
        **DISARMED,
    }
    if method == "HEAD":
        return Response(status_code=status_code, headers=shown)
    return _Body(await service.open(ref, sent), len(sent), status_code, shown)


class _Body(Response):
    """A range of an open file as a response; reads in threads, closes the file whatever happens."""

    def __init__(self, file: BinaryIO, size: int, status_code: int, headers: dict[str, str]) -> None:
        super().__init__(status_code=status_code, headers=headers)
        self._file, self._left = file, size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            while self._left:
                chunk = await asyncio.to_thread(self._file.read, min(CHUNK_BYTES, self._left))
                if not chunk:  # the file was replaced by a shorter one: clients notice the truncated answer
                    raise FileMissingError("the file became shorter while it was sent")
                self._left -= len(chunk)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await asyncio.to_thread(self._file.close)


def _http_date(seconds: float) -> str:
    return format_datetime(datetime.fromtimestamp(int(seconds), UTC), usegmt=True)


def _seconds(date: str | None) -> float | None:
    """Return an HTTP date in Unix seconds; None for a missing or malformed one, which counts as not sent."""
    try:
        return None if date is None else parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None


def _unchanged(headers: Headers, stat: FileStat) -> bool:
    """Whether the client's copy is current: If-None-Match decides where it is sent, else If-Modified-Since."""
    if (tags := headers.get("if-none-match")) is not None:
        known = {tag.strip().removeprefix("W/") for tag in tags.split(",")}
        return "*" in known or f'"{stat.etag}"' in known
    since = _seconds(headers.get("if-modified-since"))
    return since is not None and int(stat.modified_s) <= since


def _range_holds(headers: Headers, stat: FileStat) -> bool:
    """Whether If-Range, if sent, matches the file: by the strong tag, or the exact date."""
    condition = headers.get("if-range")
    if condition is None or condition == f'"{stat.etag}"':
        return True
    return '"' not in condition and _seconds(condition) == int(stat.modified_s)


def _asked_range(header: str, size: int) -> range | None:
    """Return the positions a Range header asks for, empty if it is outside the file, None if it is to be ignored."""
    asked = _RANGE.fullmatch(header)
    if asked is None or asked["first"] == asked["last"] == "":
        return None
    if not asked["first"]:
        return range(max(0, size - int(asked["last"])), size)
    first = int(asked["first"])
    if not asked["last"]:
        return range(first, size)
    return range(first, min(size, int(asked["last"]) + 1)) if first <= int(asked["last"]) else None
