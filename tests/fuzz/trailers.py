"""Requests whose body has trailer fields, which HTTP clients have no way to send; h11 writes them."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import h11
import httpx

from tests.fuzz.inputs import Request


async def send(url: str, request: Request) -> httpx.Response:
    """Send a request's body in one chunk with its trailers behind. Errors: httpx.HTTPError if that is no HTTP."""
    parts = urlsplit(url)
    own = [(b"host", parts.netloc.encode()), (b"transfer-encoding", b"chunked"), (b"connection", b"close")]
    connection = h11.Connection(h11.CLIENT)
    try:
        head = h11.Request(method=request.method, target=request.target, headers=[*own, *request.headers])
        sent = [connection.send(head), connection.send(h11.Data(data=request.body))]
        sent.append(connection.send(h11.EndOfMessage(headers=list(request.trailers))))
    except h11.LocalProtocolError as error:
        raise httpx.LocalProtocolError(str(error)) from error
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(b"".join(data for data in sent if data))
        return await _answer(connection, reader)
    except (OSError, h11.RemoteProtocolError) as error:
        raise httpx.RemoteProtocolError(str(error)) from error
    finally:
        writer.close()


async def _answer(connection: h11.Connection, reader: asyncio.StreamReader) -> httpx.Response:
    status, headers, body = 0, [], b""
    while True:
        event = connection.next_event()
        match event:
            case h11.NEED_DATA:
                connection.receive_data(await reader.read(65_536))
            case h11.Response():
                status, headers = event.status_code, list(event.headers)
            case h11.Data():
                body += bytes(event.data)
            case h11.EndOfMessage() | h11.ConnectionClosed():
                kept = [(name, value) for name, value in headers if name.lower() != b"content-encoding"]
                return httpx.Response(status, headers=kept, content=body)
