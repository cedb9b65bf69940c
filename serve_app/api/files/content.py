"""Content types and dispositions of stored files: browsers show types that run no code, and download all others.

Sources: WHATWG MIME Sniffing (nosniff), CSP level 3 (sandbox), RFC 6266 (Content-Disposition).
"""

from __future__ import annotations

import mimetypes
from pathlib import PurePosixPath

IMAGE_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
}
"""Content type by suffix."""

SHOWN_TYPES = {
    **IMAGE_TYPES,
    ".avif": "image/avif",
    ".mp4": "video/mp4",
    ".webm": "video/webm",
    ".m4v": "video/mp4",
    ".mov": "video/quicktime",
    ".mkv": "video/x-matroska",
    ".avi": "video/x-msvideo",
    ".mp3": "audio/mpeg",
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".aac": "audio/aac",
    ".ogg": "audio/ogg",
    ".oga": "audio/ogg",
    ".opus": "audio/ogg",
    ".m4a": "audio/mp4",
    ".txt": "text/plain; charset=utf-8",
    ".json": "application/json",
}
UNKNOWN_TYPE = "application/octet-stream"

DISARMED = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox"}
"""Headers of every stored file: no MIME sniffing, and a page would be sandboxed, without origin and scripts."""


def content_type(filename: str) -> str:
    """Return the type to send a file with, by its suffix."""
    return SHOWN_TYPES.get(PurePosixPath(filename).suffix.lower(), UNKNOWN_TYPE)


def kind(filename: str) -> str:
    """Return the kind of a file by its suffix: "image", "video", "audio" or another, "" if it is unknown."""
    known = SHOWN_TYPES.get(PurePosixPath(filename).suffix.lower()) or mimetypes.guess_type(filename, strict=False)[0]
    return "" if known is None else known.partition("/")[0]


def disposition(filename: str) -> str:
    """Return the Content-Disposition in ComfyUI's form; a file whose type is not shown is an attachment."""
    name = "".join("_" if c in '"\\' or not c.isprintable() or ord(c) > 255 else c for c in filename)
    return f'{"attachment; " * (content_type(filename) == UNKNOWN_TYPE)}filename="{name}"'
