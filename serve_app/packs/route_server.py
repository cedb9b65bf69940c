"""Runs the HTTP handlers of node packs: an aiohttp server in the replica, on a private Unix socket.

It has a thread and an event loop of its own, so that a blocking handler delays other handlers only, and no job.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TypeVar

import aiohttp
from aiohttp import web
from yarl import URL

from serve_app import log
from serve_app.errors import ServeAppError
from serve_app.execution.contained import contained, original_error
from serve_app.packs.routes import Headers, PackAnswer, PackCall, PackFrame, Piece

_log = log.get("nodes.packs")

T = TypeVar("T")

_CONNECTION = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect"}
)
"""Hop-by-hop headers, which are not relayed."""
UNREAD_MESSAGES = 64
"""The most unread messages of one client."""
UNREAD = 1008
"""The code that a websocket is closed with whose messages nobody reads (RFC 6455, 7.4.1)."""
_CHUNK_BYTES = 1 << 20
"""Answers up to this Content-Length are relayed whole."""


class BrokenAnswerError(ServeAppError):
    """An answer was cut off after its beginning had been relayed."""


class RouteServer:
    """Serves the routes of an aiohttp application; starts with the first call."""

    def __init__(self, app: web.Application) -> None:
        self._app = app
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: Future[aiohttp.ClientSession]
        self._opened = AsyncExitStack()
        self._said: dict[str, asyncio.Queue[PackFrame]] = {}

    async def answer(self, call: PackCall) -> AsyncGenerator[Piece]:
        """Run the handler of a call, from any loop; its failures become answers."""
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_run, args=(self._loop,), name="pack-routes", daemon=True).start()
                self._client = asyncio.run_coroutine_threadsafe(self._start(), self._loop)
        # Shielded: a cancelled caller must not cancel the start for others.
        client = await asyncio.shield(asyncio.wrap_future(self._client))
        loop, there = self._loop, "http://pack"
        if call.socket is None:
            pieces = relay(client, there, call)
        else:
            pieces = relay_socket(
                client, there, call, self._said.setdefault(call.socket, asyncio.Queue(UNREAD_MESSAGES))
            )
        try:
            while (piece := await _in(loop, anext(pieces, None))) is not None:
                yield piece
        finally:
            self._said.pop(call.socket or "", None)
            await _in(loop, pieces.aclose())

    def deliver_pack_frame(self, socket: str, frame: PackFrame) -> None:
        """Deliver a client's message to its websocket, if that is open."""
        said = self._said.get(socket)
        if said is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(put_frame, said, frame)

    async def close(self) -> None:
        """Stop the server."""
        if self._loop is not None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._opened.aclose(), self._loop))
            self._loop.call_soon_threadsafe(self._loop.stop)

    async def _start(self) -> aiohttp.ClientSession:
        """Serve the application on a socket in a directory that only this user may enter; return its client."""
        self._app.middlewares.insert(0, _guarded)
        directory = self._opened.enter_context(tempfile.TemporaryDirectory(prefix="serve-app-"))
        socket = str(Path(directory) / "routes")
        runner = web.AppRunner(self._app, access_log=None, shutdown_timeout=0)
        await runner.setup()
        self._opened.push_async_callback(runner.cleanup)
        await web.UnixSite(runner, socket).start()
        client = relay_client(aiohttp.UnixConnector(socket, limit=0))
        return await self._opened.enter_async_context(client)


def put_frame(said: asyncio.Queue[PackFrame], frame: PackFrame) -> None:
    """Add a message; if the queue is full, the last one closes the websocket."""
    if said.qsize() < UNREAD_MESSAGES - 1:
        said.put_nowait(frame)
    elif not said.full():
        said.put_nowait(PackFrame(UNREAD))


async def _in(loop: asyncio.AbstractEventLoop, awaitable: Awaitable[T]) -> T:
    """Await something in another loop."""

    async def awaited() -> T:
        return await awaitable

    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(awaited(), loop))


async def relay(client: aiohttp.ClientSession, at: str, call: PackCall) -> AsyncGenerator[Piece]:
    """Relay a call to the server at a URL and yield its answer, a long body in pieces.

    client: made by `relay_client`.
    """
    begun = False
    try:
        async with client.request(
            call.method, _url(at, call), headers=_headers(call), data=call.body or None, allow_redirects=False
        ) as response:
            length = response.content_length
            if response.method == "HEAD" or response.status in (204, 304):
                yield PackAnswer(response.status, _kept(response), b"")
                return
            if length is not None and length <= _CHUNK_BYTES:
                yield PackAnswer(response.status, _kept(response), await response.read())
                return
            yield PackAnswer(response.status, _kept(response), b"", more=True)
            begun = True
            async for piece in response.content.iter_any():
                yield piece
    except aiohttp.ClientError as error:
        # A handler that ends the connection itself, or a request that aiohttp's server cannot read.
        _log.warning("%s %s of a node pack has no answer: %r", call.method, call.target, error)
        if begun:
            raise BrokenAnswerError("the node pack's handler broke off its answer") from error
        yield _problem(502, "the node pack's handler broke off its answer")


async def relay_socket(
    client: aiohttp.ClientSession, at: str, call: PackCall, said: asyncio.Queue[PackFrame]
) -> AsyncGenerator[Piece]:
    """Relay a websocket to the server at a URL: yield its messages, and send the client's.

    The first value is the answer to the handshake: status 101, or a refusal.
    """
    protocols = next((value for name, value in call.headers if name == b"sec-websocket-protocol"), b"")
    asked = [protocol.strip() for protocol in protocols.decode("latin-1").split(",") if protocol.strip()]
    try:
        socket = await client.ws_connect(_url(at, call), headers=_headers(call), protocols=asked, max_msg_size=0)
    except aiohttp.WSServerHandshakeError as error:
        yield _problem(error.status, f"the node pack's handler takes no websocket: {error.message}")
        return
    except aiohttp.ClientError as error:
        _log.warning("websocket %s of a node pack has no answer: %r", call.target, error)
        yield _problem(502, "the node pack's handler broke off its answer")
        return
    telling = asyncio.create_task(_tell(socket, said))
    try:
        agreed = ((b"sec-websocket-protocol", socket.protocol.encode()),) if socket.protocol else ()
        yield PackAnswer(101, agreed, b"", more=True)
        async for message in socket:
            yield PackFrame(message.data)
        yield PackFrame(socket.close_code or 1006)
    finally:
        telling.cancel()
        await socket.close()


async def _tell(socket: aiohttp.ClientWebSocketResponse, said: asyncio.Queue[PackFrame]) -> None:
    with suppress(ConnectionError, aiohttp.ClientError):
        while True:
            match (await said.get()).content:
                case str() as text:
                    await socket.send_str(text)
                case bytes() as content:
                    await socket.send_bytes(content)
                case int() as code:
                    await socket.close(code=code)
                    return


def _url(at: str, call: PackCall) -> URL:
    return URL(f"{at}{call.target}", encoded=True)


def _headers(call: PackCall) -> list[tuple[str, str]]:
    return [
        (name.decode("latin-1"), value.decode(errors="replace"))
        for name, value in call.headers
        if name not in _CONNECTION and name != b"content-length" and not name.startswith(b"sec-websocket-")
    ]


def relay_client(connector: aiohttp.BaseConnector) -> aiohttp.ClientSession:
    """Return an HTTP client that relays requests and answers unchanged."""
    return aiohttp.ClientSession(
        connector=connector,
        # One client's cookies must not be sent for another.
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
    )


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """Run the loop until it is stopped, whatever a task that a handler started raises."""
    while True:
        try:
            loop.run_forever()
        except BaseException as error:
            _log.error("a task of a node pack's handler tried to end the process", exc_info=error)
        else:
            return


def _kept(response: aiohttp.ClientResponse) -> Headers:
    """Return the answer's end-to-end headers."""
    dropped = _CONNECTION | {b"server", b"date"}
    return tuple((name.lower(), value) for name, value in response.raw_headers if name.lower() not in dropped)


@web.middleware
async def _guarded(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer 500 for a handler that raises, with its traceback in the log."""
    try:
        with contained():
            response: object = await handler(request)
        if not isinstance(response, web.StreamResponse):
            raise TypeError(f"the handler returned {type(response).__name__} and no response")
        return response
    except web.HTTPException:
        raise
    except Exception as failure:
        error = original_error(failure)
        _log.error("%s %s of a node pack failed", request.method, request.path, exc_info=error)
        failed = _problem(500, f"{type(error).__name__} in the node pack's handler; the server's log says more")
        return web.Response(status=failed.status, body=failed.body, content_type="application/json")


def _problem(status: int, detail: str) -> PackAnswer:
    """Return a failure with the body that this server's failures have."""
    body = json.dumps({"error": "Node pack failed", "detail": detail, "status_code": status}).encode()
    headers = ((b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()))
    return PackAnswer(status, headers, body)
