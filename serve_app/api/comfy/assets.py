"""The web page's assets: what its gallery shows and deletes, and its library of models.

Three lists, each the newest first or by name: outputs of ended jobs, files of the input area, model files. An output
and an upload of v2 are records, under the ids that v2 knows them by; another input file and a model are none, and
their ids say which they are. Source: the routes and answers that comfyui-frontend-package 1.58.1 uses, ComfyUI 0.38.
"""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.comfy.asset_items import INPUT, MODELS, OUTPUT_TAGS, Item, RefusedError, find_item, missing, refused
from serve_app.api.comfy.asset_lists import Wanted, next_stretch
from serve_app.api.comfy.body import read_members
from serve_app.api.content import content_type, disposition
from serve_app.api.request import Current
from serve_app.api.routing import Routes
from serve_app.api.stored_file import stored_file
from serve_app.api.strict_json import Json
from serve_app.errors import shown
from serve_app.service import Service
from serve_app.store.assets import DeleteAsset
from serve_app.store.gallery import ChangeTags
from serve_app.store.named_files import NeededFiles, places

router = Routes()

LIMIT, MOST = 100, 500
"""Assets of one answer where none is asked for, and at most."""
TAGS, TAG_LENGTH = 32, 256
VIEWED = ("image/", "video/", "audio/", "text/")
"""Kinds that the page shows by themselves."""

_CONTROL = re.compile("[\0-\x1f\x7f]")


# Routes ---------------------------------------------------------------------------------------------------------------


@router.read("/assets")
async def get_assets(request: Request, service: Current) -> Response:
    """List assets. `total` counts those of this answer, and one more if more follow: nobody counts the whole."""
    try:
        wanted, limit = _wanted(request), _limit(request)
        source, _, cursor = request.query_params.get("after", "").partition(".")
        stretch = await next_stretch(service, wanted, limit, source, cursor)
    except RefusedError as error:
        return refused(error)
    return Json(
        {
            "assets": [_shape(item) for item in stretch.items],
            "total": len(stretch.items) + (stretch.following is not None),
            "has_more": stretch.following is not None,
            **({} if stretch.following is None else {"next_cursor": stretch.following}),
        }
    )


@router.read("/assets/{asset_id}")
async def get_asset(request: Request, service: Current) -> Response:
    """Show an asset."""
    try:
        return Json(_shape(await find_item(service, request.path_params["asset_id"])))
    except RefusedError as error:
        return refused(error)


@router.read("/assets/{asset_id}/content")
async def get_content(request: Request, service: Current) -> Response:
    """Return an asset's bytes, or a range of them. Model files are not given out."""
    try:
        item = await find_item(service, request.path_params["asset_id"])
        if item.area == MODELS:
            raise RefusedError(403, "FORBIDDEN", "model files are listed only: the server does not give them out")
    except RefusedError as error:
        return refused(error)
    ref = item.ref
    how = disposition(ref.filename)
    if request.query_params.get("disposition") == "attachment" and not how.startswith("attachment"):
        how = f"attachment; {how}"
    return await stored_file(service, ref, content_type(ref.filename), how, request.method, request.headers)


@router.on("/assets/{asset_id}", ["DELETE"])
async def delete_asset(request: Request, service: Current) -> Response:
    """Take an asset away. An output's file stays its job's; an input file that a job may need yet is not deleted."""
    try:
        await _delete(service, await find_item(service, request.path_params["asset_id"]))
    except RefusedError as error:
        return refused(error)
    return Response(status_code=204)


@router.post("/assets/{asset_id}/tags")
async def post_tags(request: Request, service: Current) -> Response:
    """Give an asset tags."""
    return await _change_tags(request, service, add=True)


@router.on("/assets/{asset_id}/tags", ["DELETE"])
async def delete_tags(request: Request, service: Current) -> Response:
    """Take tags from an asset; those that say where it lies stay."""
    return await _change_tags(request, service, add=False)


@router.post("/assets/seed")
async def post_seed() -> Response:
    """Say that every file is known: lists are made of what is there, and nothing scans for it."""
    return Json({"status": "completed"})


# One asset ------------------------------------------------------------------------------------------------------------


async def _delete(service: Service, item: Item) -> None:
    """Delete an asset. Errors: RefusedError."""
    if item.area == MODELS:
        raise RefusedError(403, "FORBIDDEN", "model files are everyone's and are not deleted from the page")
    if item.record is None:
        place = tuple(places([item.ref], service.tenant))
        if await service.inquire(NeededFiles(place)):
            raise RefusedError(409, "ASSET_IN_USE", f"{item.path} is named by a job that has not ended, or by an asset")
        await asyncio.to_thread(service.store.delete, item.ref)
        return
    deleted = await service.inquire(DeleteAsset(item.asset_id))
    if deleted.what == "missing":
        raise missing(item.asset_id)
    if deleted.what == "in use":
        raise RefusedError(409, "ASSET_IN_USE", f"asset {item.asset_id} is used by a job that has not ended")
    for ref in deleted.files:
        await asyncio.to_thread(service.store.delete, ref)


async def _change_tags(request: Request, service: Service, *, add: bool) -> Response:
    try:
        item = await find_item(service, request.path_params["asset_id"])
        given = _tags((await read_members(request, service.limits.command)).get("tags"))
        if item.record is None:
            raise RefusedError(403, "FORBIDDEN", f"{item.path} is a file as it lies there: it keeps no tags")
        own = item.record.tags
        changed = await service.inquire(ChangeTags(item.asset_id, given if add else (), () if add else given, TAGS))
        if changed is None:
            raise missing(item.asset_id)
        if add and not set(given) <= set(changed):
            raise RefusedError(400, "TOO_MANY_TAGS", f"an asset may have {TAGS} tags")
    except RefusedError as error:
        return refused(error)
    had = [tag for tag in given if tag in own]
    new = [tag for tag in given if tag not in own]
    told = {"added": new, "already_present": had} if add else {"removed": had, "not_present": new}
    return Json({"total_tags": [item.area, *changed], **told})


# Shapes ---------------------------------------------------------------------------------------------------------------


def _shape(item: Item) -> dict[str, Any]:
    """Return an asset as the page reads it. Its hash is not told: the page would name files by it."""
    subfolder, _, filename = item.path.rpartition("/")
    moment = datetime.fromtimestamp(item.changed_s, UTC).isoformat().replace("+00:00", "Z")
    found: dict[str, Any] = {
        "id": item.asset_id,
        "name": item.path if item.area == MODELS else filename,
        "display_name": item.name,
        "mime_type": content_type(filename),
        "tags": list(item.tags),
        "created_at": moment,
        "updated_at": moment,
        "loader_path": item.path if item.area in (MODELS, INPUT) else None,
        "user_metadata": {"subfolder": subfolder},
    }
    if item.size is not None:
        found["size"] = item.size
    if item.area != MODELS and content_type(filename).startswith(VIEWED):
        query = {"type": item.area, "filename": filename, "subfolder": subfolder}
        found["preview_url"] = f"/api/view?{urlencode(query)}"
    if item.record is not None and item.record.job_id is not None:
        found["job_id"] = item.record.job_id
        found["user_metadata"] |= {"jobId": item.record.job_id, "nodeId": item.record.node_id}
    return found


# Requests -------------------------------------------------------------------------------------------------------------


def _wanted(request: Request) -> Wanted:
    """Return what is asked for, in ComfyUI's newer words or its older ones."""
    query = request.query_params

    def tags(*names: str) -> frozenset[str]:
        return frozenset(tag.strip() for name in names for tag in query.get(name, "").split(",") if tag.strip())

    found = Wanted(
        tags("tags_all", "include_tags"),
        tags("tags_any"),
        tags("tags_none", "exclude_tags"),
        query.get("name_contains", ""),
        query.get("hash", ""),
    )
    if len(found.all | found.any | found.none) > 100:
        raise RefusedError(400, "INVALID_QUERY", "a list may be asked for by 100 tags")
    return found


def _limit(request: Request) -> int:
    text = request.query_params.get("limit", str(LIMIT))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= 1):
        raise RefusedError(
            400, "INVALID_QUERY", f"limit={shown(text)} must be a whole number from 1, at most {MOST} count"
        )
    return min(int(text), MOST)


def _tags(given: Any) -> tuple[str, ...]:
    fits = isinstance(given, list) and 1 <= len(given) <= TAGS and all(isinstance(tag, str) for tag in given)
    if not fits or any(not 1 <= len(tag) <= TAG_LENGTH or _CONTROL.search(tag) or "," in tag for tag in given):
        allowed = f"1 to {TAGS} strings of 1 to {TAG_LENGTH} characters without a comma"
        raise RefusedError(400, "INVALID_BODY", f"tags must be {allowed}, not {shown(given)}")
    if fixed := {*OUTPUT_TAGS, INPUT, MODELS, "missing"}.intersection(given):
        raise RefusedError(
            400, "INVALID_BODY", f"{', '.join(sorted(fixed))} say where an asset lies, and are the server's"
        )
    return tuple(given)
