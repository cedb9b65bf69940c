"""The real scheduler over an empty database, and replicas that do to its jobs whatever a test says."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from serve_app.config import AppConfig
from serve_app.config.limits import WebhookLimits
from serve_app.config.quotas import NO_QUOTAS, Quotas
from serve_app.errors import UnavailableError
from serve_app.graph.parse import parse
from serve_app.graph.plan import Pool, Task, TaskId
from serve_app.graph.signature import signatures
from serve_app.graph.spec import NodeSpec
from serve_app.packs.routes import PackRoute
from serve_app.scheduler.housekeeping.housekeeping import KeptFiles
from serve_app.scheduler.jobs.admission import AdmissionRules
from serve_app.scheduler.protocol.client import JobView, SchedulerClient
from serve_app.scheduler.protocol.cluster_view import HostStats
from serve_app.scheduler.protocol.messages import (
    Assign,
    Message,
    NodeFinished,
    NodePreviewed,
    NodeProgressed,
    NodeStarted,
    ReplicaInfo,
    Report,
    TaskFailed,
)
from serve_app.scheduler.scheduler import Scheduler
from serve_app.store.database.changes import JobQuery
from serve_app.store.database.database import STATEMENT_S
from serve_app.store.database.jobs import Jobs
from serve_app.store.files.store import WholeStore
from serve_app.store.page.userdata import UserData
from serve_app.store.retention.rules import RetentionRules
from tests import databases
from tests.unit.api.node_specs import SPECS
from tests.unit.scheduler.job_pages import page

POOL = "cpu"
HOST = HostStats("host", 64_000, 16_000, 48_000, ())
MEMORY = Path("/dev/shm")
"""Where a database of a moment waits for no disk, on systems that have it."""
START_S = 30.0
"""Longer than any job takes to be sent to a replica that is free for it."""


class Reached:
    """A scheduler as an ingress reaches it: while `refusal` is set, every call raises it, as if it were away."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.refusal: UnavailableError | None = None
        self.refused = asyncio.Event()
        """Set once a call was refused."""

    @property
    def client(self) -> SchedulerClient:
        """The same, as the type of what a service asks."""
        return cast(SchedulerClient, self)

    def __getattr__(self, name: str) -> Any:
        method = self.scheduler.verb(name)

        async def call(*arguments: Any, **named: Any) -> Any:
            if self.refusal is not None:
                self.refused.set()
                raise self.refusal
            return await method(*arguments, **named)

        return call


class ScriptedReplica:
    """Runs a job once a test says so, and as it says.

    For each job a replica of one slot joins, which leaves at the job's end; so a job waits until it is started here.
    Every verb returns when what it has reported is durable and clients may see it.
    """

    def __init__(self, scheduler: Scheduler, specs: Mapping[str, NodeSpec]) -> None:
        self.scheduler = Reached(scheduler)
        self._scheduler = scheduler
        self._specs = specs
        self._routes: dict[str, tuple[PackRoute, ...]] = {}
        self.running: dict[str, tuple[str, Task]] = {}
        self._numbers = itertools.count(1)

    async def jobs(self) -> dict[str, JobView]:
        """Return every job that there is, but those that were cancelled before they started."""
        states = ("queued", "running", "success", "error", "cancelled")
        return {job.job_id: job for job in (await page(self._scheduler, JobQuery(states, "created"))).jobs}

    async def announce(self, pool: str = POOL, routes: tuple[PackRoute, ...] = (), host: HostStats = HOST) -> None:
        """Join a pool without a slot: its node classes and routes are known from here on."""
        self._routes[pool] = routes
        await self._scheduler.registry.join(ReplicaInfo(_resting(pool), pool, 0, routes), [*self._specs.values()], host)

    async def messages(self) -> list[Message]:
        """Return what the replica without a slot has been sent; waits for the first."""
        return [message for _, message in await self._scheduler.registry.poll(_resting(POOL), self._scheduler.epoch, 0)]

    async def cached(self, job_id: str, nodes: Sequence[str]) -> None:
        """Hold the values of nodes of a job that waits, in the replica without a slot."""
        view = await self._scheduler.job(job_id)
        assert view is not None
        assert view.started_s is None, "what is cached is looked at when a job starts"
        found = signatures(parse(view.prompt), self._specs, _no_files, job_id)
        held = [NodeFinished(TaskId(job_id, 0, 0), node_id, found[node_id], None) for node_id in nodes]
        await self._scheduler.registry.report(_resting(POOL), self._scheduler.epoch, [*held], None)

    async def take(self) -> str:
        """Start the job that is first in the queue, waiting for one to come, and return its id."""
        replica_id, seen = f"replica-{next(self._numbers)}", 0
        info = ReplicaInfo(replica_id, POOL, 1, self._routes[POOL])
        await self._scheduler.registry.join(info, [*self._specs.values()], HOST)
        while True:
            for cursor, message in await self._scheduler.registry.poll(replica_id, self._scheduler.epoch, seen):
                seen = cursor
                if isinstance(message, Assign):
                    self.running[message.task.id.job_id] = (replica_id, message.task)
                    return message.task.id.job_id

    async def start(self, job_id: str) -> None:
        """Start this job, which must be first in the queue."""
        taken = await asyncio.wait_for(self.take(), START_S)
        assert taken == job_id, f"job {taken} is in front of it"

    async def executing(self, job_id: str, node: str) -> None:
        await self._report(job_id, NodeStarted(self._id(job_id), node))

    async def progress(self, job_id: str, node: str, value: int, maximum: int) -> None:
        await self._report(job_id, NodeProgressed(self._id(job_id), node, value, maximum))

    async def preview(self, job_id: str, node: str, image: bytes) -> None:
        await self._report(job_id, NodePreviewed(self._id(job_id), node, image))

    async def finish(self, job_id: str, node: str) -> None:
        await self.output(job_id, node, None)

    async def output(self, job_id: str, node: str, shown: Mapping[str, Any] | None) -> None:
        """A node is done, and this is what it shows; the last output of a job ends it."""
        task = self.running[job_id][1]
        await self._report(job_id, NodeFinished(task.id, node, task.signatures[node], shown))

    async def succeed(self, job_id: str, outputs: Mapping[str, Any]) -> None:
        """Make these outputs, in their order, and then the job's others, which show nothing."""
        if job_id not in self.running:
            await self.start(job_id)
        replica_id, task = self.running.pop(job_id)
        assert outputs.keys() <= {*task.targets}, f"the job's output nodes are {task.targets}"
        made = {node_id: outputs.get(node_id, {}) for node_id in (*outputs, *task.targets)}
        done = [NodeFinished(task.id, node_id, task.signatures[node_id], shown) for node_id, shown in made.items()]
        await self._scheduler.registry.report(replica_id, self._scheduler.epoch, [*done], None)
        await self._scheduler.registry.leave(replica_id, self._scheduler.epoch)

    async def fail(self, job_id: str, failure: Mapping[str, Any]) -> None:
        """End the job as a node that raises does."""
        if job_id not in self.running:
            await self.start(job_id)
        assert (await self._scheduler.count()).pending == 0, "the replica, free before it leaves, would start another"
        reasons = {"traceback": (), **failure}
        replica_id, task = self.running.pop(job_id)
        failed = TaskFailed(task.id, node_id=reasons.pop("node"), **reasons)
        await self._scheduler.registry.report(replica_id, self._scheduler.epoch, [failed], None)
        await self._scheduler.registry.leave(replica_id, self._scheduler.epoch)

    def _id(self, job_id: str) -> TaskId:
        return self.running[job_id][1].id

    async def _report(self, job_id: str, report: Report) -> None:
        await self._scheduler.registry.report(self.running[job_id][0], self._scheduler.epoch, [report], None)


@contextlib.asynccontextmanager
async def scripted(
    specs: Mapping[str, NodeSpec] = SPECS,
    routes: Mapping[str, tuple[PackRoute, ...]] | None = None,
    host: HostStats = HOST,
    webhooks: WebhookLimits | None = None,
    quotas: Quotas = NO_QUOTAS,
    files: tuple[WholeStore, UserData] | None = None,
    database_url: str | None = None,
    retention: RetentionRules | None = None,
    statement_s: float = STATEMENT_S,
) -> AsyncIterator[ScriptedReplica]:
    """Start a scheduler with replicas that run nothing by themselves.

    routes: by pool; host: the scheduler's own. files: what it counts, where quotas ask for that, and deletes.
    database_url: None is a database of its own. retention: how much is kept; None is all. statement_s: as `Jobs`.
    """
    pools = {POOL: ()} if routes is None else routes
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        jobs = Jobs(database_url or databases.made(Path(folder, "jobs.sqlite")), statement_s)
        planned = [Pool(pool, runtime=False) for pool in pools]
        scheduler = Scheduler(
            jobs,
            planned,
            _no_files,
            lambda: host,
            holder="test",
            # Tests submit one workflow again and again, and each time mean to run it.
            rules=replace(AdmissionRules.of(AppConfig()), share_results=False, quotas=quotas),
            max_attempts=3,
            # Nobody polls for a replica that the test does not speak for just now.
            silence_s=float("inf"),
            job_time_s=None,
            webhooks=webhooks,
            files=None if files is None else KeptFiles(files[0], 1e9, retention or RetentionRules(), files[1]),
        )
        await scheduler.start()
        try:
            replica = ScriptedReplica(scheduler, specs)
            for pool, announced in pools.items():
                await replica.announce(pool, announced)
            yield replica
        finally:
            await scheduler.close()


def _resting(pool: str) -> str:
    return f"{pool}-at-rest"


def _no_files(folder: str, name: str, tenant: str = "") -> str:
    return ""
