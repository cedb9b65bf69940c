"""Where the contract is tested: a server over a scheduler in memory, unless SERVE_APP_TEST_URL names another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.api.app import create_app
from serve_app.service import Service
from serve_app.store.volume import Volume
from tests.unit.api.conftest import FILES
from tests.unit.api.http_server import serve
from tests.unit.api.memory_scheduler import MemoryScheduler


@pytest.fixture(scope="session")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the server under test."""
    if url := os.environ.get("SERVE_APP_TEST_URL"):
        yield url.rstrip("/")
        return
    root: Path = tmp_path_factory.mktemp("areas")
    for area in ("input", "output", "temp"):
        (root / area).mkdir()
    volume = Volume({"input": root / "input", "output": root / "output", "temp": root / "temp"})
    yield from serve(create_app(Service(MemoryScheduler(), volume, lambda folder: FILES[folder])))
