from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.api.app import create_app
from serve_app.service import Service
from serve_app.store.store import FileRef
from serve_app.store.volume import Volume
from tests.unit.api.conftest import FILES, example, scheduler, volume
from tests.unit.api.http_server import serve
from tests.unit.api.memory_scheduler import MemoryScheduler

__all__ = ["example", "scheduler", "volume"]

IMAGE = {"filename": "a_00001_.png", "subfolder": "sub", "type": "output"}


@pytest.fixture
def url(scheduler: MemoryScheduler, volume: Volume) -> Iterator[str]:
    """The address of a server whose jobs the test moves on."""
    yield from serve(create_app(Service(scheduler, volume, lambda folder: FILES[folder])))


@pytest.fixture
def workflow(tmp_path: Path, example: dict[str, Any]) -> Path:
    """The contract's example workflow as a file in API format."""
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(example["prompt"]))
    return path


class Worker(threading.Thread):
    """Does to the next job whatever the test says, as a replica would, while the command under test waits."""

    def __init__(self, scheduler: MemoryScheduler, work) -> None:
        super().__init__(daemon=True)
        self._scheduler, self._work = scheduler, work
        self.start()

    def run(self) -> None:
        while not self._scheduler.jobs:
            threading.Event().wait(0.01)
        self._work(self._scheduler, next(iter(self._scheduler.jobs)))


def makes(volume: Volume, data: bytes = b"image"):
    """Return work that saves one image."""

    def work(scheduler: MemoryScheduler, job_id: str) -> None:
        scheduler.start(job_id)
        for step in (1, 10, 20):
            scheduler.progress(job_id, "3", step, 20)
        volume.write(FileRef("output", IMAGE["subfolder"], IMAGE["filename"]), data)
        scheduler.succeed(job_id, {"6": {"images": [IMAGE, IMAGE]}})

    return work


def fails(scheduler: MemoryScheduler, job_id: str) -> None:
    scheduler.start(job_id)
    failure = {"node": "3", "class_type": "KSampler", "exception_type": "NodeError", "message": "no such sampler"}
    scheduler.fail(job_id, failure)
