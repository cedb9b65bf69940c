from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from serve_app.api.app import create_app
from serve_app.service.service import Service
from serve_app.store.files.store import FileRef
from serve_app.store.files.volume import Volume
from tests.unit.api.conftest import FILES, example, volume
from tests.unit.api.http_server import Background, serve
from tests.unit.api.scripted_replica import ScriptedReplica, scripted
from tests.usual_limits import LIMITS

__all__ = ["example", "volume"]

IMAGE = {"filename": "a_00001_.png", "subfolder": "sub", "type": "output"}


class Server:
    """A server in a thread of its own, whose jobs the test moves on."""

    def __init__(self, background: Background, replica: ScriptedReplica) -> None:
        self.background = background
        self.replica = replica

    def next_job(self, work: Callable[[ScriptedReplica, str], Awaitable[None]]) -> Future[None]:
        """Do this to the next job, as a replica would, while the command under test waits."""

        async def working() -> None:
            job_id = await self.replica.take()
            try:
                await work(self.replica, job_id)
            except Exception as error:  # else the command would wait for ever
                failure = {"exception_type": type(error).__name__, "message": str(error)}
                await self.replica.fail(job_id, {"node": "", "class_type": "", **failure})
                raise

        return self.background.begin(working())

    def jobs(self) -> dict[str, Any]:
        """Return the jobs there are, as `ScriptedReplica.jobs`."""
        return {**self.background.run(self.replica.jobs())}


@pytest.fixture(autouse=True)
def log_of_its_own() -> Iterator[None]:
    """Commands send this process's log to standard error, which is another one in the next test."""
    yield
    logger = logging.getLogger("serve_app")
    logger.handlers.clear()
    logger.propagate = True


@pytest.fixture
def server() -> Iterator[Server]:
    with Background() as background, background.entered(scripted()) as replica:
        yield Server(background, replica)


@pytest.fixture
def url(server: Server, volume: Volume) -> Iterator[str]:
    """The server's address."""
    service = Service(server.replica.scheduler.client, volume, lambda folder: FILES[folder], LIMITS)
    yield from serve(create_app(service), server.background)


@pytest.fixture
def workflow(tmp_path: Path, example: dict[str, Any]) -> Path:
    """The contract's example workflow as a file in API format."""
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(example["prompt"]))
    return path


def makes(
    volume: Volume, data: bytes = b"image", shown: str = "images", file: Mapping[str, str] = IMAGE
) -> Callable[[ScriptedReplica, str], Awaitable[None]]:
    """Return work that saves one file, an image. shown: the key of the node's ui dict."""

    async def work(replica: ScriptedReplica, job_id: str) -> None:
        for step in (1, 10, 20):
            await replica.progress(job_id, "3", step, 20)
        volume.write(FileRef("output", file["subfolder"], file["filename"]), data)
        [target] = (await replica.jobs())[job_id].targets
        await replica.succeed(job_id, {target: {shown: [file, file]}})

    return work


async def fails(replica: ScriptedReplica, job_id: str) -> None:
    failure = {"node": "3", "class_type": "KSampler", "exception_type": "NodeError", "message": "no such sampler"}
    await replica.fail(job_id, failure)
