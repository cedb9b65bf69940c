"""A replica that is a ComfyUI which somebody else starts and ends: the stand-in, at a port."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.config import AppConfig
from serve_app.config.comfyui import ComfyUIConfig
from serve_app.config.pool import PoolConfig
from serve_app.replica import comfyui_runner
from serve_app.store.database.changes import Submission
from tests.comfyui.pools import free_port, graph, standin, started
from tests.unit.replica.cluster import Cluster

PATIENCE_S = 120.0


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comfyui_runner, "PAUSE_S", 0.05)


@contextlib.asynccontextmanager
async def server(root: Path, port: int) -> AsyncIterator[Cluster]:
    """Run a server with a pool "own", which has joined, and a pool "theirs", which is whatever is at the port."""
    own = standin("own")
    theirs = PoolConfig(name="theirs", comfyui=ComfyUIConfig(url=f"http://127.0.0.1:{port}"), stop_s=0.5)
    folders: dict[str, Any] = {f"{name}_dir": root / name for name in ("models", "input", "output", "temp")}
    config = AppConfig(**folders, database_url=f"sqlite:///{root}/jobs.sqlite", pools=(own, theirs))
    running = Cluster(config.resolved())
    await running.start()
    joining = asyncio.create_task(running.replica("theirs", theirs))
    try:
        async with asyncio.timeout(PATIENCE_S):
            await running.replica("own", own)
            yield running
    finally:
        joining.cancel()
        for runner in running.runners.values():
            await runner.leave()
        await running.close()


async def submit(running: Cluster, pool: str, prompt: dict[str, Any]) -> str:
    job_id = str(uuid.uuid4())
    await running.scheduler.submit(Submission(job_id, prompt, ("save",), extra_data={"pool": pool}))
    return job_id


async def told(running: Cluster) -> str:
    """Return what the pool says is wrong, once it does."""
    while not (troubles := (await running.scheduler.cluster()).troubles):
        await asyncio.sleep(0.02)
    [trouble] = troubles
    assert trouble.pool == "theirs"
    return trouble.why


async def joined(running: Cluster) -> None:
    while "theirs" not in await running.replicas():
        await asyncio.sleep(0.02)
    assert not (await running.scheduler.cluster()).troubles


async def test_a_comfyui_that_is_away_is_reported_and_used_once_it_is_there(tmp_path: Path) -> None:
    port = free_port()
    async with server(tmp_path, port) as running:
        assert "does not answer" in await told(running)
        assert (await running.finish(await submit(running, "own", graph()))).state == "success"
        async with started(tmp_path / "theirs", port):
            await joined(running)
            assert (await running.finish(await submit(running, "theirs", graph()))).state == "success"


async def test_a_comfyui_that_is_killed_and_restarted_goes_on_with_its_job(tmp_path: Path) -> None:
    port = free_port()
    async with server(tmp_path, port) as running:
        async with started(tmp_path / "first", port):
            await joined(running)
            job_id = await submit(running, "theirs", graph(StandInWork={"seconds": 60.0, "steps": 600}))
            await running.until(job_id, "progress")
        assert await told(running)
        assert (await running.finish(await submit(running, "own", graph()))).state == "success"
        assert (await running.scheduler.job(job_id)).state == "running"
        async with started(tmp_path / "second", port) as second:
            await joined(running)
            await running.scheduler.cancel(job_id)
            assert (await running.finish(job_id)).state == "cancelled"
            assert (await running.finish(await submit(running, "theirs", graph()))).state == "success"
            assert second.returncode is None


async def test_a_comfyui_that_does_not_answer_counts_as_gone_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comfyui_runner, "HEARTBEAT_S", 0.5)
    port = free_port()
    async with started(tmp_path / "theirs", port) as process, server(tmp_path, port) as running:
        await joined(running)
        process.send_signal(signal.SIGSTOP)
        assert "sign of life" in await told(running)
        process.send_signal(signal.SIGCONT)
        await joined(running)
        assert (await running.finish(await submit(running, "theirs", graph()))).state == "success"
