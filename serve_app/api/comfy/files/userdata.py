"""Users, their settings and their files, in ComfyUI's format.

With one user, every client is that user; else the header `comfy-user` names the user.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.comfy.body import empty, read_json, read_members
from serve_app.api.files.content import DISARMED, content_type, disposition
from serve_app.api.request import Current, read_body, service_of
from serve_app.api.routing import Depends, Routes
from serve_app.api.strict_json import JsonResponse
from serve_app.errors import FileMissingError, ForbiddenPathError, InvalidSubmissionError
from serve_app.store.page.userdata import DEFAULT, UserData, UserFile

router = Routes()


def _user(request: Request) -> str:
    return request.headers.get("comfy-user", DEFAULT) if service_of(request).user_data.many else DEFAULT


User = Annotated[str, Depends(_user)]
"""The id of the request's user, as a handler's parameter."""


@router.read("/users")
async def get_users(service: Current) -> Response:
    """List the users; with one only, leave the list out, as a list makes the page ask for the user."""
    data = service.user_data
    if data.many:
        return JsonResponse({"storage": "server", "users": await asyncio.to_thread(data.users)})
    return JsonResponse({"storage": "server", "migrated": await asyncio.to_thread(data.exists, DEFAULT)})


@router.post("/users")
async def post_user(request: Request, service: Current) -> Response:
    """Add a user and return the id."""
    name = (await read_members(request, service.limits.command)).get("username")
    if not service.user_data.many:
        return JsonResponse({"error": "This server has one user."}, 400)
    try:
        return JsonResponse(await asyncio.to_thread(service.user_data.add_user, name if isinstance(name, str) else ""))
    except ForbiddenPathError as error:
        return JsonResponse(
            {"error": "Duplicate username." if name else "username not provided", "details": str(error)}, 400
        )


# Settings -------------------------------------------------------------------------------------------------------------


@router.read("/settings")
async def get_settings(service: Current, user: User) -> Response:
    """Return all of the user's settings."""
    return JsonResponse(await asyncio.to_thread(service.user_data.settings, user))


@router.read("/settings/{setting:path}")
async def get_setting(request: Request, service: Current, user: User) -> Response:
    """Return one setting, null if it is not set."""
    settings = await asyncio.to_thread(service.user_data.settings, user)
    return JsonResponse(settings.get(request.path_params["setting"]))


@router.post("/settings")
async def post_settings(request: Request, service: Current, user: User) -> Response:
    """Set some settings."""
    changes = await read_members(request, service.limits.command)
    await asyncio.to_thread(service.user_data.change_settings, user, changes)
    return empty()


@router.post("/settings/{setting:path}")
async def post_setting(request: Request, service: Current, user: User) -> Response:
    """Set one setting to the JSON value in the body."""
    value = await read_json(request, service.limits.command)
    await asyncio.to_thread(service.user_data.change_settings, user, {request.path_params["setting"]: value})
    return empty()


# Files ----------------------------------------------------------------------------------------------------------------


@router.read("/userdata")
async def get_names(request: Request, service: Current, user: User) -> Response:
    """List the files in a folder: as names, names in parts, or descriptions."""
    asked = request.query_params
    if not asked.get("dir"):
        return Response("Directory not provided", 400)
    recursive = _flag(request, "recurse")
    found = await asyncio.to_thread(lambda: service.user_data.files(user, asked["dir"], recursive=recursive))
    files = [file for file in found if not file.is_folder]
    if _flag(request, "full_info"):
        return JsonResponse(list(map(_described, files)))
    if _flag(request, "split"):
        return JsonResponse([[file.path, *file.path.split("/")] for file in files])
    return JsonResponse([file.path for file in files])


@router.read("/v2/userdata")
async def get_tree(request: Request, service: Current, user: User) -> Response:
    """List everything below a folder, folders first."""
    top = request.query_params.get("path", "").strip("/")
    try:
        found = await asyncio.to_thread(lambda: service.user_data.files(user, top, recursive=True))
    except ForbiddenPathError:
        return Response("Invalid path requested", 400)
    except FileMissingError:
        return Response("Requested path not found", 404) if top else JsonResponse([])
    entries: list[dict[str, Any]] = []
    for file in found:
        path = f"{top}/{file.path}" if top else file.path
        entry = {"name": path.rpartition("/")[2], "path": path, "type": "directory" if file.is_folder else "file"}
        entries.append(entry if file.is_folder else {**entry, "size": file.size, "modified": file.modified_s})
    return JsonResponse(sorted(entries, key=lambda entry: (entry["type"] != "directory", entry["name"].lower())))


# A name may hold slashes, which clients encode but proxies may decode: the route takes both.
@router.post("/userdata/{name:path}/move/{to:path}")
async def post_move(request: Request, service: Current, user: User) -> Response:
    """Give a file another name."""
    name, to = request.path_params["name"], request.path_params["to"]
    try:
        await asyncio.to_thread(lambda: service.user_data.move(user, name, to, replace=_overwrites(request)))
    except FileExistsError:
        return Response("File already exists", 409)
    except OSError as error:
        raise _no_file(to, error) from error
    return await _written(request, service.user_data, user, to)


@router.read("/userdata/{name:path}")
async def get_file(request: Request, service: Current, user: User) -> Response:
    """Return a file."""
    name = request.path_params["name"]
    data = await asyncio.to_thread(service.user_data.read, user, name)
    kind, shown = content_type(name), disposition(name.rpartition("/")[2])
    return Response(data, media_type=kind, headers={"Content-Disposition": shown, **DISARMED})


@router.post("/userdata/{name:path}")
async def post_file(request: Request, service: Current, user: User) -> Response:
    """Store the body as a file."""
    name, data = request.path_params["name"], await read_body(request, service.limits.body)
    try:
        await asyncio.to_thread(lambda: service.user_data.write(user, name, data, replace=_overwrites(request)))
    except FileExistsError:
        return Response("File already exists", 409)
    except OSError as error:
        raise _no_file(name, error) from error
    return await _written(request, service.user_data, user, name)


@router.on("/userdata/{name:path}", ["DELETE"])
async def delete_file(request: Request, service: Current, user: User) -> Response:
    """Delete a file."""
    await asyncio.to_thread(service.user_data.delete, user, request.path_params["name"])
    return empty(204)


def _no_file(name: str, error: OSError) -> InvalidSubmissionError:
    return InvalidSubmissionError(f"no file can have the name {name[:200]!r}: {error.strerror}")


async def _written(request: Request, data: UserData, user: str, name: str) -> Response:
    if not _flag(request, "full_info"):
        return JsonResponse(name)
    return JsonResponse(_described(await asyncio.to_thread(data.stat, user, name)))


def _described(file: UserFile) -> dict[str, Any]:
    return {"path": file.path, "size": file.size, "modified": file.modified_s, "created": file.created_s}


def _flag(request: Request, name: str) -> bool:
    return request.query_params.get(name, "").lower() == "true"


def _overwrites(request: Request) -> bool:
    return request.query_params.get("overwrite", "true") != "false"
