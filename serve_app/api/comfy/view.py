"""GET /view in ComfyUI's format: any stored file, or an image as a preview or by one channel.

It answers 400 for names that could leave a directory, 403 for subfolders that do, 404 for what is not there, all empty.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError
from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.comfy.body import empty
from serve_app.api.content import DISARMED, content_type, disposition
from serve_app.api.request import Current
from serve_app.api.routing import Routes
from serve_app.api.stored_file import stored_file
from serve_app.errors import FileMissingError
from serve_app.limits import refused
from serve_app.service import Service
from serve_app.store.store import AREAS, FileRef

router = Routes()

QUALITY = 90


@router.read("/view")
async def get_view(request: Request, service: Current) -> Response:
    """Return a file as it is, or rendered as `preview` or `channel` ask."""
    query = request.query_params
    if "filename" not in query:
        return empty(404)
    ref = named(query["filename"], query.get("subfolder", ""), query.get("type", "output"))
    if isinstance(ref, int):
        return empty(ref)
    if "preview" in query:
        return await _rendered(service, ref, lambda image: _preview(image, query["preview"], query.get("channel", "")))
    if (channel := query.get("channel", "rgba")) in ("rgb", "a"):
        return await _rendered(service, ref, lambda image: _channel(image, channel))
    kind = content_type(ref.filename)
    return await stored_file(service, ref, kind, disposition(ref.filename), request.method, request.headers)


def named(filename: str, subfolder: str, area: str) -> FileRef | int:
    """Return the file that clients name so, or the status code that says why there is none.

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


@contextmanager
def opened(file: BinaryIO, name: str, most: int) -> Iterator[Image.Image]:
    """Open an image of at most so many pixels, to draw it anew. Errors: FileMissingError for what is none."""
    try:
        with Image.open(file) as image:
            check_pixels(image, most)
            yield image
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError) as error:
        raise FileMissingError(f"'{name[:80]}' is no image") from error


async def _rendered(service: Service, ref: FileRef, render: Callable[[Image.Image], tuple[bytes, str]]) -> Response:
    def make() -> tuple[bytes, str]:
        with service.store.open(ref) as file, opened(file, ref.filename, service.limits.sizes.image_pixels) as image:
            return render(image)

    async with service.rendering:
        data, kind = await asyncio.to_thread(make)
    return Response(data, media_type=kind, headers={"Content-Disposition": disposition(ref.filename), **DISARMED})


def check_pixels(image: Image.Image, most: int) -> None:
    """Refuse an image whose pixels would fill the memory, before they are decoded. Errors: FileMissingError."""
    if image.width * image.height > most:
        refused("limits.image_pixels")
        size = f"{image.width}×{image.height}"
        raise FileMissingError(f"the image has {size} pixels; limits.image_pixels of the configuration allows {most:,}")


def _preview(image: Image.Image, asked: str, channel: str) -> tuple[bytes, str]:
    """Return a smaller file of the image; asked: a format, then maybe a quality, as "webp;90"."""
    kind, *_, last = [*asked.split(";"), ""] if ";" not in asked else asked.split(";")
    kind = "jpeg" if kind == "jpeg" and "a" not in channel else "webp"
    quality = min(100, int(last)) if last.isascii() and last.isdigit() else QUALITY
    drawn = image.convert("RGB") if kind == "jpeg" or channel == "rgb" else image
    buffer = io.BytesIO()
    drawn.save(buffer, format=kind, quality=quality)
    return buffer.getvalue(), f"image/{kind}"


def _channel(image: Image.Image, channel: str) -> tuple[bytes, str]:
    """Return a PNG of the colours alone, or of the alpha alone: black, and as opaque as the image is."""
    if channel == "rgb":
        drawn = image.convert("RGB")
    else:
        alpha = image.getchannel("A") if image.mode == "RGBA" else Image.new("L", image.size, 255)
        drawn = Image.new("RGBA", image.size)
        drawn.putalpha(alpha)
    buffer = io.BytesIO()
    drawn.save(buffer, format="PNG")
    return buffer.getvalue(), "image/png"
