"""Routes of model files in ComfyUI's format: folders, names and metadata."""

from __future__ import annotations

import asyncio
from pathlib import PurePosixPath
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.comfy.body import empty
from serve_app.api.comfy.files.view import render_image
from serve_app.api.files.content import DISARMED
from serve_app.api.request import Current
from serve_app.api.routing import Routes
from serve_app.api.strict_json import JsonResponse
from serve_app.errors import FileMissingError, ModelFileError
from serve_app.store.models.catalog import FOLDERS, Catalog
from serve_app.store.models.header import header

router = Routes()


@router.read("/embeddings")
async def get_embeddings(service: Current) -> Response:
    """List the embeddings as prompts name them, without their suffix."""
    names = await asyncio.to_thread(service.catalog.names, "embeddings")
    return JsonResponse([str(PurePosixPath(name).with_suffix("")) for name in names])


@router.read("/models")
async def get_folders() -> Response:
    """List the folders of model files."""
    return JsonResponse(list(FOLDERS))


@router.read("/models/{folder}")
async def get_files(request: Request, service: Current) -> Response:
    """List a folder's files. An unknown folder is 404."""
    return JsonResponse(await asyncio.to_thread(service.catalog.names, request.path_params["folder"]))


@router.read("/experiment/models")
async def get_folders_and_paths(service: Current) -> Response:
    """List the folders of model files with the directories of each."""
    return JsonResponse([{"name": folder, "folders": service.catalog.directories(folder)} for folder in FOLDERS])


@router.read("/experiment/models/{folder}")
async def get_described_files(request: Request, service: Current) -> Response:
    """List a folder's files with their sizes and times."""
    folder = request.path_params["folder"]
    return JsonResponse(await asyncio.to_thread(_described, service.catalog, folder))


@router.read("/experiment/models/preview/{folder}/{index}/{name:path}")
async def get_picture(request: Request, service: Current) -> Response:
    """Return the picture beside a model, as WebP; 404 where there is none. Errors: FileMissingError."""
    folder, index, name = (request.path_params[part] for part in ("folder", "index", "name"))
    if not (index.isascii() and index.isdigit()):
        return empty(400)

    def make() -> bytes | None:
        file = service.catalog.picture(folder, int(index), name)
        if file is None:
            return None
        with file:
            return render_image(service, "preview", [file], name, format="webp", quality=80, colours=False)

    async with service.rendering:
        data = await asyncio.to_thread(make)
    return empty(404) if data is None else Response(data, media_type="image/webp", headers=DISARMED)


@router.read("/view_metadata/{folder}")
async def get_metadata(request: Request, service: Current) -> Response:
    """Show the metadata in a safetensors file's header; a file without any is 404, as one that is not there."""
    folder, name = request.path_params["folder"], request.query_params.get("filename", "")
    if not name.endswith(".safetensors"):
        return empty(404)
    found = await asyncio.to_thread(_metadata, service.catalog, folder, name)
    return empty(404) if found is None else JsonResponse(found)


def _described(catalog: Catalog, folder: str) -> list[dict[str, Any]]:
    found = []
    for name in catalog.names(folder):
        stat = catalog.stat(folder, name)
        times = {"modified": stat.modified_s, "created": stat.modified_s, "size": stat.size}
        found.append({"name": name, "pathIndex": catalog.directory_index(folder, name), **times})
    return found


def _metadata(catalog: Catalog, folder: str, name: str) -> Any | None:
    """Return the metadata of a safetensors header. Errors: FileMissingError if it cannot be read."""
    with catalog.open(folder, name) as file:
        try:
            return header(file).get("__metadata__")
        except ModelFileError as error:
            raise FileMissingError(f"{name} {error}") from error
