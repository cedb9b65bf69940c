"""The HTTP server of an ingress replica behind HAProxy, on a Unix socket.

Serve's own way to a replica, by its proxy or by a port of the replica's, costs each request a copy of all it carries
and the bookkeeping of a call. Here the request comes to the process that answers it, as it was sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from serve_app.deployments.proxy.http_protocol import PROTOCOL

KEEP_ALIVE_S = 600
"""How long a connection of HAProxy's stays without a request: longer than HAProxy keeps one it does not use."""


class Listener:
    """Answers at a path for the running loop, from now on."""

    def __init__(self, app: ASGIApp, path: Path) -> None:
        path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        config = uvicorn.Config(
            app,
            http=PROTOCOL,
            # Serve runs the application's own start and end.
            lifespan="off",
            proxy_headers=False,
            access_log=False,
            log_config=None,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=1,
        )
        # What clients send wrong is their matter.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._server = uvicorn.Server(config)
        self._serving = asyncio.get_running_loop().create_task(self._server.serve(sockets=[listening]))

    def check(self) -> None:
        """Raise if the server has stopped."""
        if self._serving.done():
            raise RuntimeError("the HTTP server has ended") from self._serving.exception()

    async def close(self) -> None:
        """Let requests in hand end, for a second."""
        self._server.should_exit = True
        with contextlib.suppress(Exception):
            await self._serving
