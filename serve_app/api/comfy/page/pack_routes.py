"""The HTTP routes of node packs: what no route of the server's own takes is passed on to a replica that has the pack.

As in ComfyUI each is at the root and under /api, whatever dialect the root speaks. A request goes whole; an answer
comes in pieces, without end as it may be, and a websocket's messages come and go one by one.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, ExitStack, aclosing
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketState

from serve_app.api.auth.origin import FOREIGN
from serve_app.api.concurrency_limits import Crowd, Room
from serve_app.api.problems import problem
from serve_app.api.request import read_body, service_of
from serve_app.errors import CrowdedError, ForbiddenError, ForeignPageError, ServeAppError
from serve_app.limits import refused
from serve_app.packs.routes import ANY, ON_PROMPT, PackAnswer, PackCall, PackFrame, Piece
from serve_app.service.service import Service


def install(app: Starlette) -> None:
    """Ask node packs for what an application has no route for."""

    async def relayed(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await talk(WebSocket(scope, receive, send))
            return
        response = await answer(Request(scope, receive))
        await response(scope, receive, send)

    app.router.default = relayed


class _LongAnswer(StreamingResponse):
    """An answer in pieces, which has a place until it is out or its reader has gone."""

    def __init__(self, pieces: AsyncGenerator[str | Piece], status: int, place: ExitStack) -> None:
        super().__init__(_body(pieces), status)
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._place:
            await super().__call__(scope, receive, send)


async def answer(request: Request) -> Response:
    """Return what a replica answers to a request.

    Errors: HTTPException if no pack has a route for it; CrowdedError for one more long answer.
    """
    service = service_of(request)
    pool, call = await _routed(service, request, request.method, None)
    pieces = service.relay(pool, call) if service.relay else None
    assert pieces is not None
    await anext(pieces)
    head = await anext(pieces)
    assert isinstance(head, PackAnswer)
    if head.more:
        place = ExitStack()
        try:
            place.enter_context(_room(request).taken())
        except CrowdedError:
            await pieces.aclose()
            raise
        response: Response = _LongAnswer(pieces, head.status, place)
    else:
        await pieces.aclose()
        response = Response(head.body, head.status)
    response.raw_headers = list(head.headers)
    return response


async def talk(socket: WebSocket) -> None:
    """Pass a websocket on to a replica, until either side ends it; refuse one that no pack takes."""
    service = service_of(socket)
    try:
        pool, call = await _routed(service, socket, "GET", uuid.uuid4().hex)
        pieces = service.relay(pool, call) if service.relay else None
        assert pieces is not None
        async with AsyncExitStack() as held:
            held.enter_context(_room(socket).taken())
            await held.enter_async_context(aclosing(pieces))
            replica_id = await anext(pieces)
            head = await anext(pieces)
            assert isinstance(head, PackAnswer)
            assert isinstance(replica_id, str)
            assert call.socket is not None
            if head.status != 101:
                await _refuse(socket, f"the node pack's handler at {socket.url.path} takes no websocket")
                return
            agreed = dict(head.headers).get(b"sec-websocket-protocol")
            await socket.accept(None if agreed is None else agreed.decode())
            hearing = asyncio.create_task(_hear(socket, service, replica_id, call.socket))
            try:
                await _tell(socket, pieces, hearing)
            finally:
                hearing.cancel()
    except HTTPException:
        await _refuse(socket, f"no websocket is at {socket.url.path}")
    except ServeAppError as error:
        if socket.client_state is WebSocketState.CONNECTED:
            await socket.close(1011)
        else:
            await _refuse(socket, str(error))


async def _tell(socket: WebSocket, pieces: AsyncGenerator[str | Piece], hearing: asyncio.Task[None]) -> None:
    """Send a client what the replica says, until that or the client has ended it."""
    while True:
        coming = asyncio.ensure_future(anext(pieces, None))
        await asyncio.wait((coming, hearing), return_when=asyncio.FIRST_COMPLETED)
        if not coming.done():
            # The client has gone. The replica is told so, and ends its side, or is left to notice.
            await asyncio.wait((coming,), timeout=GOODBYE_S)
            coming.cancel()
            return
        piece = coming.result()
        match piece:
            case PackFrame(str() as text):
                await socket.send_text(text)
            case PackFrame(bytes() as content):
                await socket.send_bytes(content)
            case PackFrame(int() as code):
                await socket.close(code if code not in (1005, 1006) else 1000)
                return
            case None:
                return


async def _hear(socket: WebSocket, service: Service, replica_id: str, name: str) -> None:
    """Tell the replica what a client says, until the client goes or says too much at once. Errors: CrowdedError."""
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            await service.hear(replica_id, name, PackFrame(int(message.get("code") or 1000)))
            return
        text = message.get("text")
        content = message.get("bytes") or b"" if text is None else text
        if len(content) > service.limits.command_bytes:
            refused("ingress.max_command_bytes")
            await service.hear(replica_id, name, PackFrame(TOO_LARGE))
            return
        await service.hear(replica_id, name, PackFrame(content))


async def _refuse(socket: WebSocket, reason: str) -> None:
    """Fail a handshake: with a reason where the server can send one, else with its bare 403."""
    if "websocket.http.response" in socket.scope.get("extensions", {}):
        await socket.send_denial_response(problem(404, "Not found", reason))
    else:
        await socket.close()


def _room(connection: HTTPConnection) -> Room:
    crowd: Crowd = connection.app.state.crowd
    return crowd.pack_streams


async def _routed(
    service: Service, connection: HTTPConnection, method: str, socket: str | None
) -> tuple[str, PackCall]:
    """Return which pool answers, and the call. Errors: HTTPException if no pack has a route; ForeignPageError."""
    if service.relay is None:
        raise HTTPException(404)
    path = connection.scope.get("raw_path", b"").decode("latin-1") or quote(connection.scope["path"])
    known = (await service.routes()).items() if path != ON_PROMPT else ()
    there = [(pool, r) for pool, routes in known for r in routes if r.matches(path)]
    pool = next((pool for pool, route in there if route.method in (method, ANY)), None)
    if pool is None:
        methods = ", ".join(sorted({route.method for _, route in there}))
        raise HTTPException(405, headers={"Allow": methods}) if there else HTTPException(404)
    if connection.scope.get(FOREIGN):
        # Packs have routes that do things at a GET, so even a link from another site may not lead to one.
        raise ForeignPageError("routes of node packs are not for pages of other sites")
    if service.tenant and not service.shared_packs:
        raise ForbiddenError("routes of node packs keep no tenants apart: tenants.shared_packs lets tenants use them")
    query = connection.scope["query_string"].decode("latin-1")
    body = b""
    if isinstance(connection, Request):
        body = await read_body(connection, service.limits.upload)
    target = f"{path}?{query}" if query else path
    return pool, PackCall(method, target, tuple(connection.headers.raw), body, socket)


async def _body(pieces: AsyncGenerator[str | Piece]) -> AsyncIterator[bytes]:
    async with aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, bytes):
                yield piece


TOO_LARGE = 1009
"""The code that a websocket is closed with for a message larger than any other command may be (RFC 6455, 7.4.1)."""
GOODBYE_S = 5.0
"""How long a replica has to end its side of a websocket whose client has gone."""
