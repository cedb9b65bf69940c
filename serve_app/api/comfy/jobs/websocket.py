"""The websocket: a client's events, in ComfyUI's frames.

The handler receives a client's few messages; `subscriptions` sends. A server that is not ready refuses the connection,
because clients reconnect after that and after nothing else.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Coroutine
from typing import Any

from starlette.applications import Starlette
from starlette.websockets import WebSocket, WebSocketDisconnect

from serve_app.api.comfy.jobs.frames import Frame, text_message
from serve_app.api.comfy.jobs.subscriptions import Socket, Subscriptions
from serve_app.api.comfy.system import features
from serve_app.api.request import service_of
from serve_app.api.routing import Routes
from serve_app.api.strict_json import encode_json
from serve_app.errors import ServeAppError
from serve_app.service.service import Service

router = Routes()

MESSAGE_CHARACTERS = 100_000
"""Longer messages of a client are ignored."""


def install(app: Starlette) -> None:
    """Give an application its subscriptions."""
    app.state.subscriptions = Subscriptions()


@router.websocket("/ws")
async def websocket(connection: WebSocket) -> None:
    """Serve one client until it disconnects."""
    try:
        service = service_of(connection)
        client_id = connection.query_params.get("clientId") or uuid.uuid4().hex
        socket = Socket(client_id, _sender(connection), service.tenant)
        attached = await service.attach(socket.client_id, socket.token)
    except ServeAppError:
        await connection.close()
        return
    subscriptions: Subscriptions = connection.app.state.subscriptions
    try:
        await connection.accept()
        await subscriptions.join(socket, service, attached)
        await _until_dropped(socket, _listen(connection, socket, service))
    except (WebSocketDisconnect, TimeoutError):
        pass
    finally:
        subscriptions.leave(socket)


async def _until_dropped(socket: Socket, listening: Coroutine[Any, Any, None]) -> None:
    """Receive until the client disconnects or is dropped: leaving the handler closes the connection."""
    dropped, listener = asyncio.ensure_future(socket.dropped.wait()), asyncio.ensure_future(listening)
    try:
        await asyncio.wait({dropped, listener}, return_when=asyncio.FIRST_COMPLETED)
        if listener.done():
            await listener
    finally:
        dropped.cancel()
        listener.cancel()


async def _listen(connection: WebSocket, socket: Socket, service: Service) -> None:
    """Read the client's messages; only feature flags in the first one have an effect."""
    first = True
    while True:
        message = await connection.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        text = message.get("text")
        if text is None or not first:
            continue
        content = _parsed(text) if len(text) <= MESSAGE_CHARACTERS else {}
        if content.get("type") == "feature_flags":
            flags = content.get("data")
            socket.features = flags if isinstance(flags, dict) else {}
            await socket.send_frames([text_message("feature_flags", features(service))])
        first = False


def _parsed(text: str) -> dict[str, Any]:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


def _sender(connection: WebSocket) -> Any:
    async def send(sent: Frame) -> None:
        if isinstance(sent, bytes):
            await connection.send_bytes(sent)
        else:
            await connection.send_text(encode_json(sent).decode())

    return send
