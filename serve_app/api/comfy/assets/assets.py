"""Routes of the web page's assets: its gallery of outputs and inputs, and its library of models.

The lists are in `lists.py`, single assets in `items.py`. Source: the routes and answers that comfyui-frontend-package
1.58.1 uses, ComfyUI 0.38.
"""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.comfy.assets.items import (
    MODELS,
    AssetItem,
    AssetRefusedError,
    asset_missing,
    find_item,
    item_of,
    shape,
)
from serve_app.api.comfy.assets.lists import AssetFilter, assets_of, next_page, output_files
from serve_app.api.comfy.assets.uploads import TAGS, own_tags
from serve_app.api.comfy.body import read_members
from serve_app.api.files.content import content_type, disposition
from serve_app.api.files.stored_file import stored_file
from serve_app.api.request import Current, query_number
from serve_app.api.routing import Routes
from serve_app.api.strict_json import JsonResponse
from serve_app.errors import short_repr
from serve_app.service.service import Service
from serve_app.store.page.assets import DeleteAsset
from serve_app.store.page.gallery import ChangeTags, JobOutputs
from serve_app.store.retention.named_files import NeededFiles, places

router = Routes()

LIMIT, MOST = 100, 500
"""Assets in one answer: by default, and at most."""


# Routes ---------------------------------------------------------------------------------------------------------------


@router.read("/assets")
async def get_assets(request: Request, service: Current) -> Response:
    """List assets. `total` counts those of this answer, and one more if more follow: the whole is not counted."""
    wanted, limit = _wanted(request), _limit(request)
    source, _, cursor = request.query_params.get("after", "").partition(".")
    stretch = await next_page(service, wanted, limit, source, cursor)
    return JsonResponse(
        {
            "assets": [shape(item) for item in stretch.items],
            "total": len(stretch.items) + (stretch.following is not None),
            "has_more": stretch.following is not None,
            **({} if stretch.following is None else {"next_cursor": stretch.following}),
        }
    )


@router.read("/assets/{asset_id}")
async def get_asset(request: Request, service: Current) -> Response:
    """Show an asset."""
    return JsonResponse(shape(await find_item(service, request.path_params["asset_id"])))


@router.read("/assets/{asset_id}/content")
async def get_content(request: Request, service: Current) -> Response:
    """Return an asset's bytes, or a range of them. Model files cannot be downloaded."""
    item = await find_item(service, request.path_params["asset_id"])
    if item.area == MODELS:
        raise AssetRefusedError(403, "FORBIDDEN", "model files are listed only: the server does not give them out")
    ref = item.ref
    how = disposition(ref.filename)
    if request.query_params.get("disposition") == "attachment" and not how.startswith("attachment"):
        how = f"attachment; {how}"
    return await stored_file(service, ref, content_type(ref.filename), how, request.method, request.headers)


@router.on("/assets/{asset_id}", ["DELETE"])
async def delete_asset(request: Request, service: Current) -> Response:
    """Delete an asset. An output's file stays with its job; an input file that a job may still need is not deleted."""
    await _delete(service, await find_item(service, request.path_params["asset_id"]))
    return Response(status_code=204)


@router.post("/assets/{asset_id}/tags")
async def post_tags(request: Request, service: Current) -> Response:
    """Give an asset tags."""
    return await _change_tags(request, service, add=True)


@router.on("/assets/{asset_id}/tags", ["DELETE"])
async def delete_tags(request: Request, service: Current) -> Response:
    """Remove tags from an asset; those that name its area or folder stay."""
    return await _change_tags(request, service, add=False)


@router.post("/assets/seed")
async def post_seed() -> Response:
    """Answer that the scan for files is complete: lists are read from the store, so nothing needs a scan."""
    return JsonResponse({"status": "completed"})


@router.read("/assets/seed/status")
async def get_seed() -> Response:
    """Answer that no scan runs."""
    return JsonResponse({"state": "IDLE", "progress": None, "errors": []})


@router.post("/assets/seed/cancel")
async def post_seed_cancel() -> Response:
    """Answer that there was no scan to cancel."""
    return JsonResponse({"status": "idle"})


@router.post("/assets/prune")
async def post_prune() -> Response:
    """Answer that no missing file is listed."""
    return JsonResponse({"status": "completed", "marked": 0})


@router.read("/jobs/{job_id}/assets")
async def get_job_assets(request: Request, service: Current) -> Response:
    """List a job's output files."""
    job_id = request.path_params["job_id"]
    found = (await service.query(JobOutputs((job_id,)))).jobs if service.is_job_id(job_id) else ()
    if not found:
        raise AssetRefusedError(404, "JOB_NOT_FOUND", f"no job has the id {short_repr(job_id)}")
    limit, offset = _limit(request), int(query_number(request, "offset", int, 0))
    files = output_files(service, *found[0])
    assets = await assets_of(service, files[offset : offset + limit])
    more = {"offset": offset, "limit": limit, "total": len(files), "has_more": offset + limit < len(files)}
    listed = [{**shape(item_of(asset)), "node_id": asset.node_id} for asset in assets]
    return JsonResponse({"assets": listed, "pagination": more})


# One asset ------------------------------------------------------------------------------------------------------------


async def _delete(service: Service, item: AssetItem) -> None:
    """Delete an asset. Errors: RefusedError."""
    if item.area == MODELS:
        raise AssetRefusedError(403, "FORBIDDEN", "model files are everyone's and are not deleted from the page")
    if item.record is None:
        place = tuple(places([item.ref], service.tenant))
        if await service.query(NeededFiles(place)):
            raise AssetRefusedError(
                409, "ASSET_IN_USE", f"{item.path} is named by a job that has not ended, or by an asset"
            )
        await asyncio.to_thread(service.store.delete, item.ref)
        return
    deleted = await service.query(DeleteAsset(item.asset_id))
    if deleted.what == "missing":
        raise asset_missing(item.asset_id)
    if deleted.what == "in use":
        raise AssetRefusedError(409, "ASSET_IN_USE", f"asset {item.asset_id} is used by a job that has not ended")
    for ref in deleted.files:
        await asyncio.to_thread(service.store.delete, ref)


async def _change_tags(request: Request, service: Service, *, add: bool) -> Response:
    item = await find_item(service, request.path_params["asset_id"])
    given = own_tags((await read_members(request, service.limits.command)).get("tags"))
    if item.record is None:
        raise AssetRefusedError(403, "FORBIDDEN", f"{item.path} is a file as it lies there: it keeps no tags")
    own = item.record.tags
    changed = await service.query(ChangeTags(item.asset_id, given if add else (), () if add else given, TAGS))
    if changed is None:
        raise asset_missing(item.asset_id)
    if add and not set(given) <= set(changed):
        raise AssetRefusedError(400, "TOO_MANY_TAGS", f"an asset may have {TAGS} tags")
    had = [tag for tag in given if tag in own]
    new = [tag for tag in given if tag not in own]
    changes = {"added": new, "already_present": had} if add else {"removed": had, "not_present": new}
    return JsonResponse({"total_tags": [item.area, *changed], **changes})


# Requests -------------------------------------------------------------------------------------------------------------


def _wanted(request: Request) -> AssetFilter:
    """Return the filter in a query, which may use ComfyUI's newer or older parameters."""
    query = request.query_params

    def tags(*names: str) -> frozenset[str]:
        return frozenset(tag.strip() for name in names for tag in query.get(name, "").split(",") if tag.strip())

    found = AssetFilter(
        tags("tags_all", "include_tags"),
        tags("tags_any"),
        tags("tags_none", "exclude_tags"),
        query.get("name_contains", ""),
        query.get("hash", ""),
    )
    if len(found.all | found.any | found.none) > 100:
        raise AssetRefusedError(400, "INVALID_QUERY", "a list may be asked for by 100 tags")
    return found


def _limit(request: Request) -> int:
    text = request.query_params.get("limit", str(LIMIT))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= 1):
        raise AssetRefusedError(
            400, "INVALID_QUERY", f"limit={short_repr(text)} must be a whole number from 1, at most {MOST} count"
        )
    return min(int(text), MOST)
