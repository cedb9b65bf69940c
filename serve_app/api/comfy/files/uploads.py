"""Routes to upload images and masks, in ComfyUI's format: a form whose fields name the file and its folder.

A name that is taken gets the file only if its content is the same or `overwrite` is set; else the file gets a number.
"""

from __future__ import annotations

import asyncio
import json
import posixpath
from pathlib import PurePosixPath
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.comfy.body import empty
from serve_app.api.comfy.files.view import find_file, render_image
from serve_app.api.request import Current, with_body_bound
from serve_app.api.routing import Routes
from serve_app.api.strict_json import JsonResponse
from serve_app.errors import FileMissingError, InvalidSubmissionError
from serve_app.service.service import Service
from serve_app.store.files.store import AREAS, FileRef, Store

router = Routes()


@router.post("/upload/image")
async def post_image(request: Request, service: Current) -> Response:
    """Store an image."""
    return await _upload(request, service, masked=False)


@router.post("/upload/mask")
async def post_mask(request: Request, service: Current) -> Response:
    """Store the image that `original_ref` names, with the alpha of the one that is uploaded."""
    return await _upload(request, service, masked=True)


async def _upload(request: Request, service: Service, *, masked: bool) -> Response:
    async with with_body_bound(request, service.limits.upload).form(max_files=8, max_fields=100) as form:
        image = form.get("image")
        if not isinstance(image, UploadFile) or not image.filename:
            return empty(400)
        data = await image.read()
        wanted = _wanted(form, image.filename)
        if wanted is None:
            return empty(400)
        try:
            if masked:
                original = _original(_text(form, "original_ref"))
                if isinstance(original, int):
                    return empty(original)
                async with service.rendering:
                    data = await asyncio.to_thread(_with_alpha, service, original, data)
            overwrite = _text(form, "overwrite") in ("true", "1")
            name = await asyncio.to_thread(store, service.store, wanted, data, overwrite=overwrite)
        except FileMissingError:
            return empty(400)
    return JsonResponse({"name": name, "subfolder": _text(form, "subfolder"), "type": wanted.area})


def store(files: Store, wanted: FileRef, data: bytes, *, overwrite: bool) -> str:
    """Store a file and return its name: the wanted one, or with a number if another file has that.

    Errors: FileMissingError for a name that leaves its area.
    """
    if overwrite:
        files.write(wanted, data)
        return wanted.filename
    path = PurePosixPath(wanted.filename)
    ref, count = wanted, 0
    while True:
        try:
            files.write(ref, data, replace=False)
            return ref.filename
        except FileExistsError:
            if _holds(files, ref, data):
                return ref.filename
        count += 1
        ref = FileRef(wanted.area, wanted.subfolder, f"{path.stem} ({count}){path.suffix}")


def _holds(files: Store, ref: FileRef, data: bytes) -> bool:
    try:
        if files.stat(ref).size != len(data):
            return False
        with files.open(ref) as file:
            return file.read() == data
    except FileMissingError:
        return False


def _text(form: FormData, name: str) -> str:
    value = form.get(name)
    return value if isinstance(value, str) else ""


def _wanted(form: FormData, filename: str) -> FileRef | None:
    area = next((known for known in AREAS if known == (_text(form, "type") or "input")), None)
    if area is None:
        raise InvalidSubmissionError(f"type={_text(form, 'type')[:80]} is not a directory; allowed: {', '.join(AREAS)}")
    # Browsers send a folder's files with their paths, so the whole path is checked.
    path = posixpath.normpath(posixpath.join(_text(form, "subfolder"), filename))
    if path.startswith(("/", "..")):
        return None
    subfolder, _, name = path.rpartition("/")
    return FileRef(area, subfolder, name)


def _original(text: str) -> FileRef | int:
    try:
        reference: Any = json.loads(text)
        filename, subfolder = reference["filename"], reference.get("subfolder", "")
        return find_file(str(filename), str(subfolder), str(reference.get("type", "output")))
    except (ValueError, TypeError, KeyError, AttributeError):
        return 400


def _with_alpha(service: Service, original: FileRef, mask: bytes) -> bytes:
    """Return the original as a PNG with the mask's alpha and the original's own text. Errors: FileMissingError."""
    with service.store.open(original) as file:
        return render_image(service, "with_alpha", [file, mask], original.filename)
