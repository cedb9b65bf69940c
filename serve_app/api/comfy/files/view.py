"""GET /view in ComfyUI's format: any stored file, or an image as a preview or by one channel.

It answers 400 for names that could leave a directory, 403 for subfolders that do, 404 for missing files, all empty.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.comfy.body import empty
from serve_app.api.files.content import DISARMED, content_type, disposition
from serve_app.api.files.stored_file import stored_file
from serve_app.api.request import Current
from serve_app.api.routing import Routes
from serve_app.errors import FileMissingError, NodeError
from serve_app.media.decoder import DecoderLimits, File, decoding
from serve_app.service.service import Service
from serve_app.store.files.store import AREAS, FileRef

router = Routes()

QUALITY = 90
DRAW_S = 30.0
"""How long it may take to render an image."""


@router.read("/view")
async def get_view(request: Request, service: Current) -> Response:
    """Return a file unchanged, or an image rendered by `preview` or `channel`."""
    query = request.query_params
    if "filename" not in query:
        return empty(404)
    ref = find_file(query["filename"], query.get("subfolder", ""), query.get("type", "output"))
    if isinstance(ref, int):
        return empty(ref)
    if "preview" in query:
        asked = _preview(query["preview"], query.get("channel", ""))
        return await _rendered(service, ref, f"image/{asked['format']}", "preview", **asked)
    if (channel := query.get("channel", "rgba")) in ("rgb", "a"):
        return await _rendered(service, ref, "image/png", "channel", alpha=channel == "a")
    kind = content_type(ref.filename)
    return await stored_file(service, ref, kind, disposition(ref.filename), request.method, request.headers)


def find_file(filename: str, subfolder: str, area: str) -> FileRef | int:
    """Return the file that a client names, or the status code of the refusal.

    A filename may end in " [output]" (input, temp), which overrules the area; folders in it are ignored.
    """
    for annotated in AREAS:
        if filename.endswith(f"[{annotated}]"):
            filename, area = filename.removesuffix(f"[{annotated}]").rstrip(" "), annotated
    known = next((candidate for candidate in AREAS if candidate == area), None)
    if known is None or not filename or filename.startswith("/") or ".." in filename:
        return 400
    if subfolder.startswith("/") or ".." in subfolder.split("/"):
        return 403
    name = PurePosixPath(filename).name
    return FileRef(known, subfolder, name) if name else 400


def render_image(service: Service, task: str, files: Sequence[File], name: str, **asked: Any) -> bytes:
    """Return image files rendered in a decoder by a task of `media.pictures`. Errors: FileMissingError."""
    try:
        what = f"'{name[:80]}'"
        bounds = DecoderLimits(service.limits.sizes, seconds=DRAW_S, owner=service.tenant)
        with decoding(task, files, what, bounds, **asked) as answers:
            return b"".join(answer for answer in answers if isinstance(answer, bytes))
    except NodeError as error:
        raise FileMissingError(str(error)) from error


async def _rendered(service: Service, ref: FileRef, media_type: str, task: str, **asked: Any) -> Response:
    def make() -> bytes:
        with service.store.open(ref) as file:
            return render_image(service, task, [file], ref.filename, **asked)

    async with service.rendering:
        data = await asyncio.to_thread(make)
    return Response(data, media_type=media_type, headers={"Content-Disposition": disposition(ref.filename), **DISARMED})


def _preview(asked: str, channel: str) -> dict[str, Any]:
    """Return a preview's arguments; asked: a format, then perhaps a quality, as "webp;90"."""
    format, *_, last = [*asked.split(";"), ""] if ";" not in asked else asked.split(";")
    format = "jpeg" if format == "jpeg" and "a" not in channel else "webp"
    quality = min(100, int(last)) if last.isascii() and last.isdigit() else QUALITY
    return {"format": format, "quality": quality, "colours": channel == "rgb"}
