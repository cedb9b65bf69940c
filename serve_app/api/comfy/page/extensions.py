"""The web pages of node packs: the list of their scripts, which the page loads, and the files themselves."""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from serve_app.api.comfy.page import pack_routes, page
from serve_app.api.request import Current
from serve_app.api.routing import Routes
from serve_app.api.strict_json import JsonResponse
from serve_app.errors import FileMissingError

router = Routes()


@router.read("/extensions")
async def get_extensions(request: Request, service: Current) -> Response:
    """List the URL paths of the scripts."""
    own = [] if request.app.state.page is None else [page.SCRIPT, page.MISSING]
    if own and hasattr(request.app.state, "authenticator"):
        own.append(page.LOG_OUT)
    passed_on = [route.script for routes in (await service.routes()).values() for route in routes if route.script]
    return JsonResponse(list(dict.fromkeys([*own, *await asyncio.to_thread(service.extensions.scripts), *passed_on])))


@router.read("/serve_app/missing_classes")
async def get_missing_classes(request: Request, service: Current) -> Response:
    """Return why node classes, each a `name` of the query, are not here, and where they would run."""
    names = request.query_params.getlist("name")[: service.limits.ids]
    return JsonResponse(await service.missing_classes(names))


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
