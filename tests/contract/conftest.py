"""Where the contract is tested: an HTTP server over a scheduler in memory, unless SERVE_APP_URL names a running one."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI

from serve_app.api.app import create_app
from serve_app.service import Service
from serve_app.store.volume import Volume
from tests.unit.api.conftest import FILES
from tests.unit.api.memory_scheduler import MemoryScheduler


def serve(app: FastAPI) -> Iterator[str]:
    """Run an application on a free port of this machine and yield its URL; stop it afterwards."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the server under test."""
    if url := os.environ.get("SERVE_APP_URL"):
        yield url.rstrip("/")
        return
    root: Path = tmp_path_factory.mktemp("areas")
    for area in ("input", "output", "temp"):
        (root / area).mkdir()
    volume = Volume({"input": root / "input", "output": root / "output", "temp": root / "temp"})
    yield from serve(create_app(Service(MemoryScheduler(), volume, lambda folder: FILES[folder])))
