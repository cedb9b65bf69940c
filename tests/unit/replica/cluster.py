"""A whole cluster in one process and one event loop: scheduler, replicas and database, without Ray or HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from serve_app.config import AppConfig
from serve_app.config.limits import BackoffRules
from serve_app.config.pool import PoolConfig
from serve_app.deployments.scheduler import make_scheduler
from serve_app.errors import NotReadyError
from serve_app.events import Event, Kind
from serve_app.replica.assemble import assemble
from serve_app.replica.comfyui_assemble import assemble_comfyui
from serve_app.replica.comfyui_runner import ComfyUIRunner
from serve_app.replica.runner import Runner
from serve_app.scheduler.protocol.client import JobView
from serve_app.scheduler.scheduler import Scheduler
from serve_app.store.database.changes import Submission
from tests import databases


class InProcess:
    """Values between replicas of one process: as they are."""

    def put(self, value: Any) -> Any:
        return value

    async def get(self, reference: Any) -> Any:
        return reference


class Cluster:
    """The scheduler and its replicas, each of which can be taken away and brought back."""

    def __init__(self, config: AppConfig) -> None:
        self.config = config
        self.scheduler: Scheduler
        self.runners: dict[str, Any] = {}
        self.lives: dict[str, asyncio.Task[None]] = {}
        self.exits: list[int] = []

    async def start(self) -> None:
        self.scheduler = make_scheduler(self.config, "test")
        await self.scheduler.start()

    def __getattr__(self, name: str) -> Any:
        """Stand in for the scheduler, so that replicas find the new one after a restart."""
        return self.scheduler.verb(name)

    async def replica(self, name: str, pool: PoolConfig | None = None) -> None:
        pool = pool or self.config.pools[0]
        runner: Runner | ComfyUIRunner
        if pool.comfyui is not None:
            runner = assemble_comfyui(self.config, pool, name, self, InProcess())
        else:
            runner = assemble(self.config, pool, name, self, InProcess(), self.exits.append)
        self.runners[name], self.lives[name] = runner, asyncio.create_task(runner.run())
        while name not in await self.replicas():
            await asyncio.sleep(0.01)

    async def replicas(self) -> set[str]:
        try:
            return {r.replica_id for r in (await self.scheduler.cluster()).replicas}
        except NotReadyError:
            return set()

    async def models(self, name: str) -> Any:
        """Return a replica's models once they are created."""
        while (models := self.runners[name].models) is None:
            await asyncio.sleep(0.01)
        return models

    async def lose(self, name: str) -> None:
        """End a replica without a word, as SIGKILL would, and let the scheduler notice."""
        life = self.lives.pop(name)
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
        await self.runners.pop(name).drop_all()
        await self.scheduler.registry.lost(name)

    async def restart_scheduler(self) -> None:
        """Replace the scheduler by a new one over the same database."""
        old, new = self.scheduler, make_scheduler(self.config, "test")
        await new.start()
        self.scheduler = new
        old.retire()
        await old.close()

    async def submit(self, prompt: Mapping[str, Any], outputs: tuple[str, ...], job_id: str | None = None) -> str:
        job_id = job_id or str(uuid.uuid4())
        await self.scheduler.submit(Submission(job_id, prompt, outputs))
        return job_id

    async def finish(self, job_id: str) -> JobView:
        """Return the job once it has ended."""
        while (view := await self.scheduler.job(job_id)) is None or view.ended_s is None:
            await asyncio.sleep(0.01)
        return view

    async def until(self, job_id: str, kind: Kind) -> None:
        """Return once an event of this kind has happened to the job."""
        seen: list[Event] = []
        while all(event.kind != kind for event in seen):
            assert not (seen and seen[-1].last), f"the job has ended without {kind}"
            seen += await self.scheduler.events(job_id, seen[-1].seq if seen else 0, 60)

    async def events(self, job_id: str) -> list[Event]:
        """Return all of an ended job's events."""
        return await self.scheduler.events(job_id, 0, 0)

    async def close(self) -> None:
        for name in list(self.lives):
            self.lives[name].cancel()
        await asyncio.gather(*self.lives.values(), return_exceptions=True)
        await self.scheduler.close()


@contextlib.asynccontextmanager
async def cluster(root: Path, pools: tuple[PoolConfig, ...], **settings: Any) -> AsyncIterator[Cluster]:
    """Run a cluster over directories in `root`, with one replica a pool named after it.

    Unless the settings say otherwise, nobody waits for long for having ended a replica.
    """
    settings.setdefault("backoff", BackoffRules(first_s=0.05))
    database = root / "jobs.sqlite"
    config = AppConfig(
        models_dir=root / "models",
        input_dir=root / "input",
        output_dir=root / "output",
        temp_dir=root / "temp",
        database_url=f"sqlite:///{database}" if database.exists() else databases.made(database),
        pools=pools,
        **settings,
    ).resolved()
    running = Cluster(config)
    await running.start()
    try:
        await asyncio.gather(*(running.replica(pool.name, pool) for pool in pools))
        yield running
    finally:
        await running.close()
