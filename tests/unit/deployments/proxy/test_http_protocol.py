"""Requests with trailers, by raw sockets to uvicorn with each parser it knows, and through HAProxy."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from uvicorn import config
from uvicorn.protocols.http.h11_impl import H11Protocol

from serve_app.deployments.proxy import haproxy, http_protocol
from serve_app.deployments.proxy.haproxy import HAProxy, socket_path
from serve_app.deployments.proxy.http_protocol import PROTOCOL
from serve_app.deployments.proxy.listener import Listener
from tests.cluster.server import free_port

PATIENCE_S = 60.0
HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nX-Mine: 1\r\nTransfer-Encoding: chunked\r\n"
BODY = b"\r\n2\r\n{}\r\n0\r\n"
TRAILERS = b"X-API-Key: k\r\nX-Tenant: b\r\nOrigin: http://evil\r\nHost: y\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n"


async def seen(request: Request) -> JSONResponse:
    """Answer with the headers that count once the whole body has come."""
    body = await request.body()
    return JSONResponse([[k.decode(), v.decode()] for k, v in request.scope["headers"]] + [["body", body.decode()]])


APP = Starlette(routes=[Route("/", seen, methods=["POST"])])


async def asked(address: int | Path, *pieces: bytes) -> list[Any]:
    """Send pieces with a pause before each but the first; return what each of two answers says of its request."""
    async with asyncio.timeout(PATIENCE_S):
        if isinstance(address, int):
            reader, writer = await asyncio.open_connection("127.0.0.1", address)
        else:
            reader, writer = await asyncio.open_unix_connection(address)
        answers = []
        writer.write(pieces[0])
        for piece in pieces[1:]:
            await asyncio.sleep(0.1)
            writer.write(piece)
        for _ in range(2):
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            answers.append(json.loads(await reader.readexactly(length)))
        writer.close()
    return answers


async def check(address: int | Path) -> None:
    """Trailers of one request are in no headers, whether they come at once or later; the next request has its own."""
    following = HEAD + b"X-Next: 2" + b"\r\n" + BODY + b"\r\n"
    whole, cut = [HEAD + BODY + TRAILERS + following], [HEAD + BODY, TRAILERS, following]
    for pieces in (whole, cut, [HEAD, BODY, TRAILERS[:9], TRAILERS[9:], following]):
        first, second = await asked(address, *pieces)
        names = [name for name, _ in first]
        assert not {"x-api-key", "x-tenant", "origin"}.intersection(names), first
        assert ["x-mine", "1"] in first
        assert [value for name, value in first if name == "host"] == ["x"]
        assert "6.6.6.6" not in [value for _, value in first]
        assert ["body", "{}"] in first
        assert ["x-next", "2"] in second


@pytest.mark.parametrize("protocol", [PROTOCOL, H11Protocol, "auto"])
async def test_trailers_are_no_headers_whichever_parser_reads_them(monkeypatch, protocol):
    monkeypatch.setitem(config.HTTP_PROTOCOLS, "auto", config.HTTP_PROTOCOLS["auto"])
    http_protocol.install()
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(APP, http=protocol, port=port, log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        await check(port)
    finally:
        server.should_exit = True
        await serving


@pytest.mark.skipif(haproxy.find() is None, reason="no HAProxy on this machine")
async def test_trailers_are_no_headers_behind_haproxy_and_at_the_ingress_itself(tmp_path_factory):
    binary = haproxy.find()
    assert binary is not None
    port = free_port()
    front = HAProxy(binary, tmp_path_factory.mktemp("h") / "s", "127.0.0.1", port, 1)
    front.start({})
    listener = Listener(APP, socket_path(front.folder, 0))
    try:
        await asyncio.sleep(0.5)
        await check(socket_path(front.folder, 0))
        await check(port)
    finally:
        await listener.close()
        front.end()
