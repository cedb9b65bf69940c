"""The websocket: a client's events, in ComfyUI's frames.

The handler listens for the little a client says; `subscriptions` speaks. A server that is not ready refuses the
connection, because clients try again after that and after nothing else.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.websockets import WebSocket, WebSocketDisconnect

from serve_app.api.comfy.frames import Frame, frame
from serve_app.api.comfy.subscriptions import Socket, Subscriptions
from serve_app.api.comfy.system import features
from serve_app.api.strict_json import encode
from serve_app.errors import ServeAppError
from serve_app.service import Service

router = APIRouter()


def install(app: FastAPI) -> None:
    """Give an application its subscriptions."""
    app.state.subscriptions = Subscriptions()


@router.websocket("/ws")
async def websocket(connection: WebSocket) -> None:
    """Serve one client until it goes."""
    socket = Socket(connection.query_params.get("clientId") or uuid.uuid4().hex, _sender(connection))
    try:
        service: Service = connection.app.state.service()
        attached = await service.attach(socket.client_id, socket.token)
    except ServeAppError:
        await connection.close()
        return
    subscriptions: Subscriptions = connection.app.state.subscriptions
    try:
        await connection.accept()
        await subscriptions.join(socket, service, attached)
        await _listen(connection, socket, service)
    except WebSocketDisconnect:
        pass
    finally:
        subscriptions.leave(socket)


async def _listen(connection: WebSocket, socket: Socket, service: Service) -> None:
    """Read what the client says; only flags in its first message mean anything."""
    first = True
    while True:
        message = await connection.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        if message.get("text") is None:
            continue
        said = _parsed(message["text"])
        if first and said.get("type") == "feature_flags":
            flags = said.get("data")
            socket.features = flags if isinstance(flags, dict) else {}
            await socket.say([frame("feature_flags", features(service))])
        first = False


def _parsed(text: str) -> dict[str, Any]:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _sender(connection: WebSocket) -> Any:
    async def send(sent: Frame) -> None:
        if isinstance(sent, bytes):
            await connection.send_bytes(sent)
        else:
            await connection.send_text(encode(sent).decode())

    return send
