"""The web pages of node packs: the list of their scripts, which the page loads, and the files themselves."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from serve_app.api.comfy.page import pack_routes, page, templates
from serve_app.api.request import Current
from serve_app.api.routing import Routes
from serve_app.api.strict_json import JsonResponse
from serve_app.errors import FileMissingError
from serve_app.service.queued_jobs import queued_jobs

router = Routes()


@router.read("/extensions")
async def get_extensions(request: Request, service: Current) -> Response:
    """List the URL paths of the scripts."""
    own = [] if request.app.state.page is None else [*page.SCRIPTS]
    if own and hasattr(request.app.state, "authenticator"):
        own.append(page.LOG_OUT)
    passed_on = [route.script for routes in (await service.routes()).values() for route in routes if route.script]
    return JsonResponse(list(dict.fromkeys([*own, *await asyncio.to_thread(service.extensions.scripts), *passed_on])))


@router.read("/serve_app/missing_classes")
async def get_missing_classes(request: Request, service: Current) -> Response:
    """Return why node classes, each a `name` of the query, are not here, and where they would run."""
    names = request.query_params.getlist("name")[: service.limits.ids]
    return JsonResponse(await service.missing_classes(names))


@router.read("/serve_app/templates")
async def get_templates(service: Current) -> Response:
    """Return where each official template runs: `here`, `nowhere`, in a `pool` that is a ComfyUI; and what it lacks."""
    needed = await asyncio.to_thread(templates.needed_by_template)
    return JsonResponse({name: asdict(found) for name, found in (await service.where_workflows_run(needed)).items()})


@router.read("/serve_app/queue")
async def get_queue(service: Current) -> Response:
    """Return the unfinished jobs, those that run first, with their progress, place and about how long they wait."""
    return JsonResponse(asdict(await queued_jobs(service)))


@router.read("/extensions/{pack}/{file:path}")
async def get_file(request: Request, service: Current) -> Response:
    """Return a page file of a pack, revalidated each time, as ComfyUI does for scripts."""
    pack, file = request.path_params["pack"], request.path_params["file"]
    try:
        path = await asyncio.to_thread(service.extensions.path, pack, file)
    except FileMissingError:
        try:
            return await pack_routes.answer(request)
        except HTTPException:
            return Response(status_code=404)
    return FileResponse(path, headers={"Cache-Control": "no-cache"})
