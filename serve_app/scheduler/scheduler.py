"""The scheduler: the machine with its asyncio shell, database writer, mailboxes and event streams.

The machine's commands go through the writer, which executes them once their changes are durable. So a job is in the
database before its id is answered. Knows no Ray: `deployments/scheduler.py` makes it an actor.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from serve_app import log
from serve_app.config.limits import BackoffRules, EventLimits, WebhookLimits
from serve_app.errors import (
    ChangeRefusedError,
    DrainingError,
    NotReadyError,
    ServeAppError,
    StaleEpochError,
    UnavailableError,
)
from serve_app.events import ENDINGS, Event, Failure
from serve_app.graph.graph import Graph
from serve_app.graph.plan import Pool
from serve_app.graph.spec import NodeSpec
from serve_app.packs.routes import PackRoute
from serve_app.scheduler.administration import Administration
from serve_app.scheduler.cluster_status import ClusterStatus
from serve_app.scheduler.core.backoff import Backoff
from serve_app.scheduler.core.costs import Costs
from serve_app.scheduler.core.demand import Demand
from serve_app.scheduler.core.events import (
    CancelAsked,
    Command,
    JobArrived,
    JobRefused,
    MachineEvent,
    Persist,
    Publish,
    PublishToClient,
    Send,
)
from serve_app.scheduler.core.machine import Machine
from serve_app.scheduler.core.time_limit import JobTimeLimits
from serve_app.scheduler.durability.database_health import DatabaseHealth
from serve_app.scheduler.durability.lease import SchedulerLease
from serve_app.scheduler.durability.writer import Writer, persistently
from serve_app.scheduler.events import job_log
from serve_app.scheduler.events.job_counters import JobCounters
from serve_app.scheduler.events.published_jobs import PublishedJobs
from serve_app.scheduler.housekeeping.housekeeping import Housekeeping, KeptFiles
from serve_app.scheduler.jobs.acceptance import Acceptance
from serve_app.scheduler.jobs.admission import Admission, AdmissionRules
from serve_app.scheduler.jobs.ended_jobs import EndedJobs
from serve_app.scheduler.jobs.job_lookup import JobLookup
from serve_app.scheduler.jobs.remote_validation import RemoteValidation
from serve_app.scheduler.jobs.usage import DAY_S, Usage
from serve_app.scheduler.jobs.views import queue_view
from serve_app.scheduler.protocol.client import (
    Accepted,
    Attached,
    JobKeys,
    JobProgress,
    JobView,
    Prevalidation,
    QueueBounds,
    QueueCount,
    QueueView,
    Reader,
    Unfinished,
    UnsentEvents,
)
from serve_app.scheduler.protocol.cluster_view import ClusterView, HostStats, ReplicaTrouble
from serve_app.scheduler.protocol.messages import Free, Message, SchedulerForReplicas, SocketFrame
from serve_app.scheduler.replicas.abilities import Abilities
from serve_app.scheduler.replicas.registry import ReplicaRegistry
from serve_app.scheduler.watch import Watch
from serve_app.scheduler.webhooks.deliverer import Post, WebhookDeliverer, WebhookDelivererThread
from serve_app.scheduler.webhooks.outgoing import Outgoing
from serve_app.store.database.changes import Change, JobQuery, JobRow, Submission
from serve_app.store.database.jobs import Jobs
from serve_app.store.database.queries import Query
from serve_app.store.tenants.pauses import Pause
from serve_app.threads import Threads

T = TypeVar("T")
_log = log.get("scheduler")

REMEMBER_S = 10.0
"""The interval at which measured durations are stored."""
RECENT_S, RECENT_JOBS = 60.0, 200
"""How long before a restart, and how many, ended jobs are published again, as clients may have missed their end."""


class Scheduler:
    """One per cluster. Implements SchedulerClient; its `registry` implements SchedulerForReplicas.

    pools: as the planner sees them. fingerprint: (folder, name) -> a tag that changes with the file. host: looks at
    the scheduler's own host. holder: its server. rules: who may submit. files: those for housekeeping. events: the
    limits of stored events. backoff: how long owners wait that have ended replicas. webhooks: the allowed URLs and the
    retries. post: sends a webhook message; None sends from this process.
    """

    def __init__(
        self,
        jobs: Jobs,
        pools: Sequence[Pool],
        fingerprint: Callable[..., str],
        host: Callable[[], HostStats],
        *,
        holder: str,
        rules: AdmissionRules,
        max_attempts: int,
        silence_s: float,
        job_time_s: float | None,
        deadline_s: float | None = None,
        files: KeptFiles | None = None,
        events: EventLimits | None = None,
        backoff: BackoffRules | None = None,
        webhooks: WebhookLimits | None = None,
        post: Post | None = None,
    ) -> None:
        self._events = events
        self._rules = rules
        self._admit = partial(Admission, rules, pools, fingerprint=fingerprint)
        self._silence_s = silence_s
        self._time_limits = JobTimeLimits({"job_time_s": job_time_s, "deadline_s": deadline_s})
        self.silenced: Callable[[str], None] = lambda replica_id: None
        """Called with a replica that is lost for its silence; its process may be alive. Set before `start`."""
        self.jobs = jobs
        self._pools = tuple(pools)
        self._host = host
        self._max_attempts = max_attempts
        self._backoff = backoff
        self._database = Threads("database")
        self._reading = Threads("reading")
        self._in_database = self._database.call
        self._beside = self._reading.call
        """Runs a read in threads of its own, so that it does not delay the writer."""
        self._abilities = Abilities(self._pools, jobs, self._in_database)
        self._tasks: list[asyncio.Task[None]] = []
        self.counters = JobCounters()
        self.files = files
        self.housekeeping: Housekeeping | None = None
        self._lease = SchedulerLease(jobs, holder, self._in_database)
        self.fenced = self._lease.fenced
        limits = webhooks or WebhookLimits()
        send = post or Outgoing(limits.allowed_networks, limits.timeout_s).post
        self._deliverer = WebhookDelivererThread(lambda: WebhookDeliverer(self._run_query, send, limits))
        self._writer = Writer(self._record, self._execute, self._refused, self._lease.lose)
        self._health = DatabaseHealth(jobs, self._writer, self._renew)

    async def start(self) -> None:
        """Take the lease, plan every unfinished job again and begin to work."""
        await self._lease.take()
        self.epoch = self._lease.epoch
        self._tasks = [asyncio.create_task(work()) for work in (self._lease.keep, self._health.inspect)]
        costs = Costs(await self._in_database(self.jobs.costs))
        usage = Usage(await self._in_database(self.jobs.usage, int(time.time() // DAY_S)))
        quota, gpus = self._rules.quotas.of, self._rules.gpus
        backoff = Backoff(self._backoff or BackoffRules(), await self._in_database(self.jobs.backoffs))
        self.machine = Machine(self.epoch, self._max_attempts, costs, quota, gpus, usage, backoff)
        shared = [pool for pool in self._pools if not pool.whole]
        self._validation = RemoteValidation(shared, self.machine.replicas.least_busy, self._mail)
        self.registry = ReplicaRegistry(
            self._lease,
            {pool.name for pool in self._pools},
            self._abilities,
            validation=self._validation,
            apply=self._apply,
            record=lambda change: self._writer.put([Persist(change)]),
            is_current=self.machine.is_current,
            silence_s=self._silence_s,
            silenced=self.silenced,
        )
        self._administration = Administration(
            self._pools,
            self.machine.replicas,
            self.machine.results,
            self.registry,
            apply=self._apply,
            query=self.query,
        )
        await self._abilities.recall()
        next_order = await self._in_database(self.jobs.next_order)
        self.admission = self._admit(specs=self._abilities.specs, next_order=next_order)
        self.published = PublishedJobs(self.epoch, self._events)
        self._watch = Watch(self.machine, self.registry, self.published.feeds, self._time_limits, self._writer.put)
        self._tasks += [asyncio.create_task(work()) for work in (self._writer.run, self._watch.run, self._remember)]
        unended = self.machine.jobs
        self._lookup = JobLookup(self.jobs, self.published, unended, self._in_database, self._beside)
        self._acceptance = Acceptance(
            self.jobs,
            self._lease,
            self.machine,
            self.published,
            self._lookup,
            self._writer,
            self.admission,
            self._rules.quotas,
            apply=self._apply,
            in_database=self._in_database,
        )
        self.status = ClusterStatus(
            [pool.name for pool in self._pools],
            self._rules,
            self._lease,
            self.machine,
            self.published,
            self.registry,
            self.counters,
            self._host,
        )
        self._ended = EndedJobs(
            self.jobs,
            self.epoch,
            self.published,
            self.machine.results,
            apply=self._apply,
            query=self.query,
            in_database=self._in_database,
            beside=self._beside,
        )
        await self._administration.recall()
        unfinished = await self._in_database(self.jobs.unfinished)
        query = JobQuery(tuple(ENDINGS), "ended", descending=True, limit=RECENT_JOBS)
        ended, _ = await self._in_database(self.jobs.page, query)
        self.published.recover([*(row for row in ended if (row.ended_s or 0.0) > time.time() - RECENT_S), *unfinished])
        await asyncio.gather(*map(self._recover, unfinished), return_exceptions=True)
        await self._ended.count()
        if self.files is not None:
            self.housekeeping = Housekeeping(
                self.files,
                self.jobs,
                self._lease,
                self._in_database,
                count_bytes=self._rules.quotas.count_bytes,
                results=self.machine.results.ui_dicts,
                forgotten=self._ended.forgotten,
                forget_files=self._ended.forget_files,
            )
            self._tasks += self.housekeeping.start()
        self._deliverer.start()
        _log.info("epoch %d: %d unfinished jobs", self.epoch, len(self.machine.jobs))

    async def wait_until_expired(self) -> None:
        """Return once no other scheduler uses the database. Call it before `start`."""
        await self._lease.wait_until_expired()

    async def close(self) -> None:
        """Stop. Changes that are not committed are lost; none of them has been published."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._deliverer.close)
        self._database.close()
        self._reading.close()
        self.jobs.close()

    def retire(self) -> None:
        """Refuse every later call with DrainingError, as after losing the lease."""
        self.fenced.set()

    def verb(self, name: str) -> Callable[..., Awaitable[Any]]:
        """Return the method for a verb of SchedulerClient or of SchedulerForReplicas."""
        home = self.registry if hasattr(SchedulerForReplicas, name) else self
        answering: Callable[..., Awaitable[Any]] = getattr(home, name)
        return answering

    # For the ingress --------------------------------------------------------------------------------------------------

    async def submit(self, submission: Submission) -> Accepted:
        self._check_alive()
        return await self._acceptance.submit(submission)

    async def cancel(self, job_id: str, tenant: str = "") -> bool:
        self._check_alive()
        job = self.machine.jobs.get(job_id)
        if job is None or not job.row.is_of(tenant):
            return False
        await self._apply(CancelAsked(job_id))
        return True

    async def cancel_all(self, job_ids: Sequence[str] | None, which: Unfinished | None = None, tenant: str = "") -> int:
        self._check_alive()
        unended = self.published.unended.within(tenant)
        lists = {"running": unended.running, "queued": unended.waiting}
        shown = unended.values() if which is None else iter(lists[which])
        ids = [job.row.job_id for job in shown] if job_ids is None else dict.fromkeys(job_ids)
        known = [job for job_id in ids if (job := self.machine.jobs.get(job_id)) is not None]
        jobs = [job for job in known if job.row.is_of(tenant)]
        wanted = [job for job in jobs if which is None or (job.started_s is None) == (which == "queued")]
        await asyncio.gather(*[self._apply(CancelAsked(job.row.job_id)) for job in wanted])
        return len(wanted)

    async def count(self, tenant: str = "") -> QueueCount:
        self._check_ready()
        unended = self.published.unended.within(tenant)
        return QueueCount(len(unended.running), len(unended.waiting))

    async def queue(self, bounds: QueueBounds, tenant: str = "") -> QueueView:
        self._check_ready()
        wait_s = max((one.wait_s for one in self.status.backoffs() if one.tenant == tenant), default=0.0)
        return queue_view(self.published.unended.within(tenant), bounds, self._administration.paused, wait_s)

    async def job(self, job_id: str, tenant: str = "") -> JobView | None:
        self._check_ready()
        return await self._lookup.job(job_id, tenant)

    async def progress(self, job_id: str, tenant: str = "") -> JobProgress | None:
        self._check_ready()
        return self._lookup.progress(job_id, tenant)

    async def preview(self, job_id: str, tenant: str = "") -> Event | None:
        return self._lookup.preview(job_id, tenant)

    async def query(self, query: Query[T]) -> T:
        self._check_alive()
        try:
            answer = await self._run_query(query)
        except StaleEpochError as error:
            raise DrainingError(str(error), retry_after_s=2) from error
        if query.writes:
            self._deliverer.wake()
        return answer

    async def _run_query(self, query: Query[T]) -> T:
        """Run a query, in any event loop."""
        ask = self._in_database if query.writes else self._beside
        return await ask(self.jobs.query, self.epoch, query)

    async def keys(self, query: JobQuery) -> JobKeys:
        self._check_ready()
        return await self._lookup.keys(query)

    async def views(self, job_ids: Sequence[str], brief: bool, tenant: str = "") -> tuple[JobView, ...]:
        self._check_ready()
        return await self._lookup.views(job_ids, tenant, brief=brief)

    async def forget(self, job_ids: Sequence[str] | None, tenant: str = "") -> None:
        self._check_alive()
        await self._ended.forget(job_ids, tenant)

    async def remove(self, job_ids: Sequence[str] | None, tenant: str = "") -> tuple[int, tuple[str, ...]]:
        self._check_alive()
        await self._writer.put([])  # ends that are known in memory may not be durable yet
        removed = await self._ended.remove(job_ids, tenant)
        if self.housekeeping is not None:
            # What cannot be deleted now stays on the list, and is deleted at the next round.
            with contextlib.suppress(UnavailableError, OSError):
                await self.housekeeping.doomed()
        return removed

    async def warm(self, models: Sequence[str], pool: str | None) -> tuple[str, ...]:
        self._check_ready()
        return self._administration.warm(models, pool)

    async def pause(self, pause: Pause, paused: bool) -> tuple[Pause, ...]:
        return await self._administration.pause(pause, paused)

    async def hand_over(self, drain: Pause) -> None:
        self._check_ready()
        self._administration.hand_over(drain)

    async def deliver_pack_frame(self, replica_id: str, frame: SocketFrame) -> None:
        self._check_alive()
        self.registry.pass_on(replica_id, frame)

    async def free(self, wish: Free) -> None:
        self._check_alive()
        self._administration.free(wish)

    async def answered(self, job_id: str) -> None:
        self.published.feeds.release(job_id)

    async def attach(self, feed: str, token: str) -> Attached:
        self._check_alive()
        return self.published.attach(feed, token)

    async def unsent_events(self, readers: Mapping[str, Reader], queue: int, timeout_s: float) -> UnsentEvents:
        self._check_alive()
        return await self.published.feeds.unsent_events(readers, queue, timeout_s)

    async def events(self, job_id: str, after: int, timeout_s: float, tenant: str = "") -> list[Event]:
        self._check_alive()
        return await (await self._lookup.stream(job_id, tenant)).poll(after, timeout_s)

    async def check(self, graph: Graph, outputs: Sequence[str]) -> Prevalidation:
        self._check_ready()
        return await self._validation.check(graph, outputs, await self.specs())

    async def specs(self, pool: str | None = None) -> Mapping[str, NodeSpec]:
        self._check_ready()
        if pool is None:
            return self._abilities.specs()
        return self._say_why(lambda: self._abilities.specs_of(pool))

    async def specs_since(self, tag: str, pool: str | None = None) -> tuple[str, Mapping[str, NodeSpec] | None]:
        """Return a tag of the node classes, and the classes as `specs`, None if the tag is the given one."""
        specs, now = await self.specs(pool), f"{self.epoch}.{self._abilities.revision}"
        return now, None if now == tag else specs

    async def routes(self) -> Mapping[str, tuple[PackRoute, ...]]:
        self._check_alive()
        return self._abilities.routes()

    async def job_trace(self, job_id: str, tenant: str = "") -> Sequence[tuple[float, str]]:
        self._check_ready()
        return self.machine.trace(job_id) if job_id in self.published.unended.within(tenant) else []

    async def cluster(self) -> ClusterView:
        self._check_ready()
        return self.status.view(self._administration.paused, self._administration.drained)

    async def ready(self) -> Sequence[ReplicaTrouble]:
        """Return the replicas that cannot work. Errors: kinds of UnavailableError while no job can be committed."""
        self._check_ready()
        try:
            await self._health.check()
        except StaleEpochError as error:
            self._lease.lose(error)
            self._check_alive()
        return self.status.troubles()

    async def backlog(self, pool: str) -> Demand:
        """Return the pool's load, for autoscaling.

        An unknown pool has one waiting task, so that a replica starts and reports its node classes.
        """
        if pool not in self._abilities:
            return Demand(1, 0)
        demand = self.machine.backlog(pool)
        return demand._replace(waiting=demand.waiting + self._validation.waiting(pool))

    # Recovering -------------------------------------------------------------------------------------------------------

    async def _recover(self, row: JobRow) -> None:
        """Plan an unfinished job again; returns once the first changes are durable."""
        try:
            recovered = self._apply(JobArrived(row, await self.admission.readmit(row)))
            if job := self.machine.jobs.get(row.job_id):
                self.published.show(job)
                self._watch.recover(job)
            await recovered
        except ServeAppError as error:
            _log.error("job %s can no longer be planned: %s", row.job_id, error)
            await self._apply(JobRefused(row.job_id, Failure.of(error), row.started_s or row.created_s))

    # Executing --------------------------------------------------------------------------------------------------------

    def _apply(self, event: MachineEvent) -> asyncio.Future[None]:
        """Pass an event to the machine. The future is done once its commands are durable and executed."""
        return self._writer.put(self.machine.handle(event, time.time()))

    async def _record(self, changes: Sequence[Change]) -> None:
        if await self._in_database(self.jobs.write, self.epoch, changes):
            self._deliverer.wake()

    async def _renew(self) -> None:
        await self._in_database(self.jobs.renew, self.epoch)

    def _refused(self, error: ChangeRefusedError) -> list[Command]:
        return self.machine.handle(JobRefused(error.job_id, Failure.of(error)), time.time())

    def _execute(self, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case Send(replica_id, message):
                    self._mail(replica_id, message)
                case Publish(event):
                    job = self.published.unended.get(event.job_id)
                    if event.kind == "executed" and self.housekeeping is not None and job is not None:
                        self.housekeeping.saved(event.data["output"], job.tenant)
                    job_log.note(event, job)
                    self.published.publish(event)
                    self.counters.take(event)
                    self._watch.take(event)
                case PublishToClient(client_id, event):
                    self.published.feeds.put(client_id, event)
                case Persist():
                    pass

    def _mail(self, replica_id: str, message: Message) -> None:
        self.registry.mail(replica_id, message)

    async def _remember(self) -> None:
        """Store measured durations until the lease is lost."""
        with contextlib.suppress(StaleEpochError):
            while True:
                await asyncio.sleep(REMEMBER_S)
                if learned := self.machine.costs.take_changed():
                    await persistently(partial(self._in_database, self.jobs.save_costs, self.epoch, learned))

    def _check_alive(self) -> None:
        self._lease.check()

    def _check_ready(self) -> None:
        self._check_alive()
        self._say_why(self._abilities.check)

    def _say_why(self, checked: Callable[[], T]) -> T:
        """Return what `checked` returns. Errors: NotReadyError, with the reasons that replicas report."""
        try:
            return checked()
        except NotReadyError as error:
            why = "; ".join(f"pool {trouble.pool}: {trouble.why}" for trouble in self.status.troubles())
            raise NotReadyError(f"{error}; {why}", error.retry_after_s) if why else error from None
