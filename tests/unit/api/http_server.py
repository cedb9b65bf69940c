"""An application behind a real socket of this machine, for tests that need HTTP as clients speak it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

import uvicorn
from starlette.applications import Starlette

T = TypeVar("T")
WAIT_S = 60.0
"""Longer than anything takes that a test asks of another thread."""


class Background:
    """An event loop in a thread of its own, beside a test that is not async."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Background:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Let something run in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Let something run in the loop and return what it returns."""
        return self.begin(work).result(WAIT_S)

    @contextlib.contextmanager
    def entered(self, manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
        """Enter an async context manager in the loop."""

        async def leave() -> None:
            await manager.__aexit__(None, None, None)

        async def enter() -> T:
            return await manager.__aenter__()

        entered = self.run(enter())
        try:
            yield entered
        finally:
            self.run(leave())


@contextlib.asynccontextmanager
async def listening(app: Starlette) -> AsyncIterator[str]:
    """Run an application on a free port of this machine, in this event loop, and yield its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        # As `serve-app up` listens: uvicorn by itself believes what any process of this host says of its peer.
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, proxy_headers=False)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await serving


def serve(app: Starlette, background: Background | None = None) -> Iterator[str]:
    """Run an application, in a loop of its own unless one is given, and yield its URL; stop it afterwards."""
    with contextlib.ExitStack() as stack:
        loop = background or stack.enter_context(Background())
        yield stack.enter_context(loop.entered(listening(app)))
