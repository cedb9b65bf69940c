"""The HTTP routes of node packs: what no route of the server's own takes is passed on to a replica that has the pack.

As in ComfyUI each is at the root and under /api, whatever dialect the root speaks. Bodies go both ways whole.
"""

from __future__ import annotations

from urllib.parse import quote

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from serve_app.api.origin import FOREIGN
from serve_app.api.problems import problem
from serve_app.api.request import read_body
from serve_app.errors import ForeignPageError
from serve_app.nodes.routes import ANY, PackAnswer, PackCall
from serve_app.service import Service


def install(app: FastAPI) -> None:
    """Ask node packs for what an application has no route for."""

    async def relayed(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await _refuse(WebSocket(scope, receive, send))
            return
        response = await answer(Request(scope, receive))
        await response(scope, receive, send)

    app.router.default = relayed


async def _refuse(socket: WebSocket) -> None:
    """Fail a handshake: with a reason where the server can send one, else with its bare 403."""
    if "websocket.http.response" in socket.scope.get("extensions", {}):
        reason = f"no websocket is at {socket.url.path}, and routes of node packs cannot take any"
        await socket.send_denial_response(problem(404, "Not found", reason))
    else:
        await socket.close()


async def answer(request: Request) -> Response:
    """Return what a replica answers to a request. Errors: HTTPException if no pack has a route for it."""
    service: Service = request.app.state.service()
    if service.relay is None:
        raise HTTPException(404)
    path = request.scope.get("raw_path", b"").decode("latin-1") or quote(request.scope["path"])
    there = [(pool, r) for pool, routes in (await service.routes()).items() for r in routes if r.matches(path)]
    pool = next((pool for pool, route in there if route.method in (request.method, ANY)), None)
    if pool is None:
        methods = ", ".join(sorted({route.method for _, route in there}))
        raise HTTPException(405, headers={"Allow": methods}) if there else HTTPException(404)
    if request.scope.get(FOREIGN):
        # Packs have routes that do things at a GET, so even a link from another site may not lead to one.
        raise ForeignPageError("routes of node packs are not for pages of other sites")
    query = request.scope["query_string"].decode("latin-1")
    call = PackCall(
        method=request.method,
        target=f"{path}?{query}" if query else path,
        headers=tuple(request.headers.raw),
        body=await read_body(request, service.limits.upload_bytes),
    )
    return _response(await service.relay(pool, call))


def _response(answer: PackAnswer) -> Response:
    response = Response(answer.body, answer.status)
    response.raw_headers = list(answer.headers)
    return response
