"""HTTP routes of node packs: requests without a route of the server's own are relayed to a replica that has the pack.

As in ComfyUI each is at the root and under /api, whatever the root's dialect. A request is sent whole; an answer is
streamed, as it may be endless, and so are a websocket's messages.
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
from serve_app.api.concurrency_limits import ConcurrencyLimit, ConcurrencyLimits
from serve_app.api.problems import problem
from serve_app.api.request import read_body, service_of
from serve_app.errors import ConcurrencyLimitError, ForbiddenError, ForeignPageError, ServeAppError
from serve_app.limits import refused
from serve_app.packs.routes import ANY, ON_PROMPT, PackAnswer, PackCall, PackFrame, Piece
from serve_app.service.service import Service


def install(app: Starlette) -> None:
    """Relay requests without a route of the application's own to node packs."""

    async def relayed(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await talk(WebSocket(scope, receive, send))
            return
        response = await answer(Request(scope, receive))
        await response(scope, receive, send)

    app.router.default = relayed


class _LongAnswer(StreamingResponse):
    """A streamed answer, which counts against the limit until it is sent or its client has disconnected."""

    def __init__(self, pieces: AsyncGenerator[str | Piece], status: int, place: ExitStack) -> None:
        super().__init__(_body(pieces), status)
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._place:
            await super().__call__(scope, receive, send)


async def answer(request: Request) -> Response:
    """Relay a request to a replica and return the answer.

    Errors: HTTPException if no pack has a route for it; ConcurrencyLimitError for too many streamed answers.
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
            place.enter_context(_limit(request).acquire())
        except ConcurrencyLimitError:
            await pieces.aclose()
            raise
        response: Response = _LongAnswer(pieces, head.status, place)
    else:
        await pieces.aclose()
        response = Response(head.body, head.status)
    response.raw_headers = list(head.headers)
    return response


async def talk(socket: WebSocket) -> None:
    """Relay a websocket to a replica until either side closes it; refuse one without a route."""
    service = service_of(socket)
    try:
        pool, call = await _routed(service, socket, "GET", uuid.uuid4().hex)
        pieces = service.relay(pool, call) if service.relay else None
        assert pieces is not None
        async with AsyncExitStack() as held:
            held.enter_context(_limit(socket).acquire())
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
            receiving = asyncio.create_task(_send_to_replica(socket, service, replica_id, call.socket))
            try:
                await _send_to_client(socket, pieces, receiving)
            finally:
                receiving.cancel()
    except HTTPException:
        await _refuse(socket, f"no websocket is at {socket.url.path}")
    except ServeAppError as error:
        if socket.client_state is WebSocketState.CONNECTED:
            await socket.close(1011)
        else:
            await _refuse(socket, str(error))


async def _send_to_client(
    socket: WebSocket, pieces: AsyncGenerator[str | Piece], receiving: asyncio.Task[None]
) -> None:
    """Send a replica's messages to the client, until either has closed the websocket."""
    while True:
        coming = asyncio.ensure_future(anext(pieces, None))
        await asyncio.wait((coming, receiving), return_when=asyncio.FIRST_COMPLETED)
        if not coming.done():
            # The client has disconnected. The replica is informed and closes its side, or notices by itself.
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


async def _send_to_replica(socket: WebSocket, service: Service, replica_id: str, name: str) -> None:
    """Send a client's messages to the replica, until the client disconnects or sends too large a message."""
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            await service.deliver_pack_frame(replica_id, name, PackFrame(int(message.get("code") or 1000)))
            return
        text = message.get("text")
        content = message.get("bytes") or b"" if text is None else text
        if len(content) > service.limits.command_bytes:
            refused("ingress.max_command_bytes")
            await service.deliver_pack_frame(replica_id, name, PackFrame(TOO_LARGE))
            return
        await service.deliver_pack_frame(replica_id, name, PackFrame(content))


async def _refuse(socket: WebSocket, reason: str) -> None:
    """Refuse a handshake: with a reason where the server can send one, else with its bare 403."""
    if "websocket.http.response" in socket.scope.get("extensions", {}):
        await socket.send_denial_response(problem(404, "Not found", reason))
    else:
        await socket.close()


def _limit(connection: HTTPConnection) -> ConcurrencyLimit:
    concurrency: ConcurrencyLimits = connection.app.state.concurrency
    return concurrency.pack_streams


async def _routed(
    service: Service, connection: HTTPConnection, method: str, socket: str | None
) -> tuple[str, PackCall]:
    """Return the pool that handles a request, and the call. Errors: HTTPException without a route; ForeignPageError."""
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
        # Packs have GET routes with side effects, so even a link from another site is refused.
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
"""The code that a websocket is closed with for a message over the limit (RFC 6455, 7.4.1)."""
GOODBYE_S = 5.0
"""How long a replica has to close its side of a websocket whose client has disconnected."""
