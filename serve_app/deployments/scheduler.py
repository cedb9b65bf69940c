"""The graph scheduler as a detached Ray actor: one for each cluster, restarted by Ray.

Detached and pinned to the head node, so that it outlives ingress replicas; its state is in the database. It exits when
it gets no calls, that is, when its application is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayActorError

from serve_app import __version__, log
from serve_app.config import AppConfig
from serve_app.deployments import metrics, telemetry
from serve_app.deployments.handles import NAME, NAMESPACE, OF_RAY, OF_SERVE
from serve_app.deployments.process import clock
from serve_app.deployments.rpc import Address, Peer, RpcServer
from serve_app.deployments.verbs import VERBS
from serve_app.deployments.webhook_sender import WebhookSenderHandle
from serve_app.errors import ServeAppError
from serve_app.graph.plan import Pool
from serve_app.limits import REFUSALS
from serve_app.replica import collector
from serve_app.replica.files import fingerprints, open_catalog, open_store
from serve_app.replica.host import host_stats
from serve_app.scheduler.durability.succession import Succession
from serve_app.scheduler.housekeeping.housekeeping import KeptFiles
from serve_app.scheduler.jobs.admission import AdmissionRules
from serve_app.scheduler.protocol.messages import ReplicaInfo
from serve_app.scheduler.scheduler import Scheduler
from serve_app.store.database.jobs import Jobs
from serve_app.store.page.userdata import UserData
from serve_app.store.retention.rules import RetentionRules
from serve_app.store.tenants.audit import ReadLastBackup

ORPHANED_S = 120.0
"""How long the actor stays without calls: longer than any restart of its callers."""
BACKUP_EVERY_S = 60.0
"""How often it is read when the last backup was made."""
PULSE_S = 1.0
_log = log.get("deployments.scheduler")


class SchedulerActor:
    """The Ray actor of the scheduler. Starts on its first call."""

    def __init__(self, config: AppConfig) -> None:
        collector.collect_rarely()
        with collector.freeze_startup_objects():
            telemetry.configure(config, "scheduler")
            self._endpoint = SchedulerEndpoint(config)

    async def call(self, method: str, *arguments: Any) -> Any:
        """As `SchedulerEndpoint.call`."""
        return await self._endpoint.call(method, *arguments)

    async def address(self) -> Address:
        """Return the address at which this process takes the same calls over TCP."""
        return await self._endpoint.address()

    async def version(self) -> str:
        """Return the version this actor was made with; see `version`."""
        return version(self._endpoint.config)

    async def retire(self) -> None:
        """Refuse calls and exit; the next scheduler plans the unfinished jobs."""
        self._endpoint.retire()


class SchedulerEndpoint:
    """Dispatches the actor's calls to the scheduler. Not the actor class itself, as Ray wraps each of its methods."""

    def __init__(self, config: AppConfig) -> None:
        self.config = config
        self._server = RpcServer(self._answer, VERBS, OF_RAY)
        self._listening: asyncio.Task[Address] | None = None
        self._callers: dict[str, Peer] = {}
        self._called_s = time.monotonic()
        self._retired = asyncio.Event()
        self._succession = Succession(self._made)
        self._tasks: list[asyncio.Task[None]] = []
        self._pulses: dict[str, asyncio.Task[None]] = {}
        self._actors: dict[str, str] = {}
        self._last_backup_s: float | None = None

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of SchedulerClient or SchedulerForReplicas."""
        self._called_s = time.monotonic()
        if not self._tasks:
            self._tasks = [
                asyncio.create_task(self._exit_when_done()),
                asyncio.create_task(metrics.show(self._figures)),
                asyncio.create_task(self._read_last_backup()),
                asyncio.create_task(clock.watch()),
            ]
        scheduler = await self._succession.scheduler()
        if method == "join":
            return await self._join(scheduler, *arguments)
        return await scheduler.verb(method)(*arguments)

    async def address(self) -> Address:
        """Return the address, listening from the first call on."""
        if self._listening is None:
            self._listening = asyncio.create_task(self._server.listen(ray.util.get_node_ip_address()))
        return await self._listening

    async def _answer(self, caller: Peer, method: str, arguments: tuple[Any, ...]) -> Any:
        if method == "join":
            self._callers[arguments[0].replica_id] = caller
        elif method == "poll":
            self._callers[arguments[0]] = caller
        return await self.call(method, *arguments)

    def retire(self) -> None:
        """Refuse calls, and exit."""
        if self._succession.current is not None:
            self._succession.current.retire()
        self._retired.set()

    def _made(self) -> Scheduler:
        scheduler = make_scheduler(self.config, ray.get_runtime_context().get_node_id())
        scheduler.silenced = self._end_actor
        return scheduler

    def _figures(self) -> Iterator[metrics.Figure]:
        if (scheduler := self._succession.current) is not None:
            yield from metrics.scheduler_figures(scheduler.status.load(), scheduler.counters)
            yield from metrics.tenant_figures(scheduler.status.tenant_loads())
            yield from metrics.backup_figures(self._last_backup_s)
            yield from metrics.limit_figures(scheduler.status.use(), REFUSALS)

    async def _read_last_backup(self) -> None:
        """Keep the time of the last backup as the database has it, which the command line writes."""
        while True:
            if (scheduler := self._succession.current) is not None:
                with contextlib.suppress(ServeAppError):
                    self._last_backup_s = await scheduler.query(ReadLastBackup())
            await asyncio.sleep(BACKUP_EVERY_S)

    async def _join(self, scheduler: Scheduler, info: ReplicaInfo, specs: Any, host: Any, actor: str) -> int:
        epoch = await scheduler.registry.join(info, specs, host)
        if earlier := self._pulses.pop(info.replica_id, None):
            earlier.cancel()
        self._actors[info.replica_id] = actor
        self._pulses[info.replica_id] = asyncio.create_task(self._pulse(scheduler, info.replica_id, actor))
        return epoch

    async def _pulse(self, scheduler: Scheduler, replica_id: str, name: str) -> None:
        """Detect the death of a replica's process: a call to a dead actor fails at once, one to a busy actor waits.

        No calls are made while the replica's connection is open.
        """
        actor: Any = None
        while True:
            if caller := self._callers.get(replica_id):
                await caller.ended.wait()
            try:
                # Not before: it brings the actor's class, with all of Serve, into this process.
                actor = actor or await asyncio.to_thread(ray.get_actor, name, OF_SERVE)
                await actor.__ray_ready__.remote()
                await asyncio.sleep(PULSE_S)
            except (RayActorError, ValueError):  # ValueError: no actor has this name any more
                self._actors.pop(replica_id, None)
                self._callers.pop(replica_id, None)
                await scheduler.registry.lost(replica_id)
                return

    def _end_actor(self, replica_id: str) -> None:
        """Kill the process of a silent replica, so that Serve replaces it."""
        if name := self._actors.pop(replica_id, None):
            asyncio.get_running_loop().run_in_executor(None, lambda: ray.kill(ray.get_actor(name, OF_SERVE)))

    async def _exit_when_done(self) -> None:
        while not self._retired.is_set() and (left_s := self._called_s + ORPHANED_S - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._retired.wait()
        _log.info("exiting: %s", "replaced" if self._retired.is_set() else "nobody calls any more")
        await self._succession.close()
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


def ensure(config: AppConfig) -> None:
    """Start a scheduler of this version unless it runs; retire one of another version first."""
    actor = ray.remote(SchedulerActor).options(
        name=NAME,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_concurrency=10_000,
        num_cpus=0,
        resources={"node:__internal_head__": 0.001},
    )
    while True:
        handle = actor.remote(config)
        try:
            if ray.get(handle.version.remote()) == version(config):
                return
            _log.info("retiring a scheduler of another version")
            ray.get(handle.retire.remote())
            ray.kill(handle, no_restart=True)
        except RayActorError:
            time.sleep(0.2)


def make_scheduler(config: AppConfig, holder: str) -> Scheduler:
    """Build the scheduler over the configured database, model files and inputs."""
    jobs, store = Jobs(config.database_url, config.database_statement_s), open_store(config)
    return Scheduler(
        jobs,
        [Pool.of(pool) for pool in config.pools],
        fingerprints(open_catalog(config), open_store(config, retry=False)),
        host_stats,
        holder=holder,
        rules=AdmissionRules.of(config),
        max_attempts=config.max_attempts,
        silence_s=config.silence_s,
        job_time_s=config.job_time_s,
        deadline_s=config.deadline_s,
        files=KeptFiles(
            store,
            config.temp_age_s,
            RetentionRules.of(config.retention),
            UserData(config.user_dir),
            config.stored_results,
        ),
        events=config.events,
        backoff=config.backoff,
        webhooks=config.webhooks,
        post=WebhookSenderHandle(config.webhooks, config.logs, config.log_level).post,
    )


def version(config: AppConfig) -> str:
    """Return the version that an up-to-date scheduler has: of the code and its configuration."""
    return f"{__version__} {config.model_dump_json()}"
