"""Running the HTTP handlers of node packs: a replica's own aiohttp server, behind a socket that only it can reach.

It has a thread and an event loop of its own, so that a handler that blocks holds up other handlers and no job.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
from aiohttp import web
from yarl import URL

from serve_app import log
from serve_app.nodes.contained import contained, raised
from serve_app.nodes.routes import Headers, PackAnswer, PackCall

_log = log.get("nodes.packs")

_CONNECTION = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect"}
)
"""Headers about the connection that they came by, and not about what it carried."""
_CHUNK_BYTES = 1 << 20


class RouteServer:
    """Answers calls to the routes of an application that nothing serves yet; starts with the first of them.

    limit_bytes: size of an answer's body.
    """

    def __init__(self, app: web.Application, limit_bytes: int) -> None:
        self._app = app
        self._limit_bytes = limit_bytes
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: Future[aiohttp.ClientSession]
        self._opened = AsyncExitStack()

    async def answer(self, call: PackCall) -> PackAnswer:
        """Run the handler of a call, which may come from any loop; its failures are answers too."""
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_run, args=(self._loop,), name="pack-routes", daemon=True).start()
                self._client = asyncio.run_coroutine_threadsafe(self._start(), self._loop)
        # Shielded: a caller that goes must not take the start away from the others.
        client = await asyncio.shield(asyncio.wrap_future(self._client))
        return await asyncio.wrap_future(
            asyncio.run_coroutine_threadsafe(relay(client, "http://pack", call, self._limit_bytes), self._loop)
        )

    async def close(self) -> None:
        """Answer nothing more."""
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


async def relay(client: aiohttp.ClientSession, at: str, call: PackCall, limit_bytes: int) -> PackAnswer:
    """Return what the server at a URL answers to a call. client: made by `relay_client`."""
    headers = [
        (name.decode("latin-1"), value.decode(errors="replace"))
        for name, value in call.headers
        if name not in _CONNECTION and name != b"content-length"
    ]
    url = URL(f"{at}{call.target}", encoded=True)
    try:
        async with client.request(
            call.method, url, headers=headers, data=call.body or None, allow_redirects=False
        ) as response:
            body = bytearray()
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                body += chunk
                if len(body) > limit_bytes:
                    return _problem(502, f"the answer is larger than the {limit_bytes} bytes that are relayed")
            return PackAnswer(response.status, _kept(response, len(body)), bytes(body))
    except aiohttp.ClientError as error:
        # A handler that ends the connection itself, or a request that aiohttp's server cannot read.
        _log.warning("%s %s of a node pack has no answer: %r", call.method, call.target, error)
        return _problem(502, "the node pack's handler broke off its answer")


def relay_client(connector: aiohttp.BaseConnector) -> aiohttp.ClientSession:
    """Return a client that passes requests and answers on as they are."""
    return aiohttp.ClientSession(
        connector=connector,
        # What one client is given to keep is not another's.
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


def _kept(response: aiohttp.ClientResponse, length: int) -> Headers:
    """Return the headers that are about the answer, its length among them if it has a body."""
    dropped = _CONNECTION | {b"server", b"date"}
    kept = [(name.lower(), value) for name, value in response.raw_headers if name.lower() not in dropped]
    has_body = response.method != "HEAD" and response.status not in (204, 304)
    if has_body and all(name != b"content-length" for name, _ in kept):
        kept.append((b"content-length", str(length).encode()))
    return tuple(kept)


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
        error = raised(failure)
        _log.error("%s %s of a node pack failed", request.method, request.path, exc_info=error)
        failed = _problem(500, f"{type(error).__name__} in the node pack's handler; the server's log says more")
        return web.Response(status=failed.status, body=failed.body, content_type="application/json")


def _problem(status: int, detail: str) -> PackAnswer:
    """Return a failure with the body that this server's failures have."""
    body = json.dumps({"error": "Node pack failed", "detail": detail, "status_code": status}).encode()
    headers = ((b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()))
    return PackAnswer(status, headers, body)
