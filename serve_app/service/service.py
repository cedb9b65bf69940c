"""The service behind all HTTP dialects: submit, watch and cancel jobs, read stored files.

It uses the scheduler's client and the store; it knows no HTTP.
"""

from __future__ import annotations

import asyncio
import copy
import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence, Set
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar, cast

from cachetools import LRUCache

from serve_app import log
from serve_app.config.pool import SHARED
from serve_app.errors import (
    InvalidSubmissionError,
    JobMissingError,
    JobUnfinishedError,
    Problem,
    QuotaLeft,
    did_you_mean,
)
from serve_app.events import ENDINGS, Event
from serve_app.graph.plan import Pool
from serve_app.graph.spec import NodeSpec
from serve_app.limits import refused
from serve_app.nodes.unsupported import NOT_THERE
from serve_app.packs.routes import ON_PROMPT, PackAnswer, PackCall, PackFrame, PackRoute, Piece
from serve_app.recipe.warm import WARM_FORM, warm_recipes
from serve_app.scheduler.protocol.client import (
    Attached,
    JobProgress,
    JobView,
    QueueBounds,
    QueueCount,
    QueueItem,
    QueueView,
    Reader,
    SchedulerClient,
    UnsentEvents,
)
from serve_app.scheduler.protocol.cluster_view import ClusterView, ReplicaTrouble
from serve_app.scheduler.protocol.messages import Free, SocketFrame
from serve_app.scheduler.protocol.request_ids import with_request_id
from serve_app.service.job_list_cache import JobListCache, Show, without_secrets
from serve_app.service.log_query import LogQuery
from serve_app.service.request_limits import Limits
from serve_app.service.submissions import SubmissionCheck, abbreviated, parse_submission
from serve_app.service.tenant_jobs import TenantJobs
from serve_app.store.database.changes import NO_CLAIMS, Claims, JobQuery, feed_of
from serve_app.store.database.queries import Query
from serve_app.store.database.query_scope import ServerScoped, TenantScoped
from serve_app.store.files.input_folders import INPUT_FOLDERS, choices
from serve_app.store.files.store import AREAS, FileRef, FileStat, Store
from serve_app.store.models.catalog import Catalog
from serve_app.store.models.check import ModelCheck
from serve_app.store.page.extensions import Extensions
from serve_app.store.page.pack_content import PackContent
from serve_app.store.page.userdata import UserData
from serve_app.store.tenants.credentials import without_credentials
from serve_app.store.tenants.listing import ListTenants
from serve_app.store.tenants.metered import Meter, MeteredStore
from serve_app.store.tenants.pauses import Pause
from serve_app.store.tenants.tenants import store_of

T = TypeVar("T")
_log = log.get("service")

TENANTS = 1000
"""How many tenants' services a process caches."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job that is in the database, why some of its output nodes were left out, and what is left of quotas.

    held: whether its client's websockets get its events only once the submission is answered.
    """

    job_id: str
    number: float
    problems: tuple[Problem, ...] = ()
    held: bool = False
    left: tuple[QuotaLeft, ...] = ()


@dataclass(frozen=True, slots=True)
class JobEvents:
    """A part of a job's event stream; `last` if the stream ends with it."""

    events: tuple[Event, ...]
    last: bool


@dataclass(frozen=True, slots=True)
class WhereItRuns:
    """Where a workflow runs, judged by its node classes alone. lacks: those that this server's own pools have not."""

    place: Literal["here", "pool", "nowhere"]
    lacks: tuple[str, ...] = ()


class Service:
    """The server's behaviour without its wire formats.

    choices: folder -> the file names a COMBO over that folder allows ("checkpoints", …, or "input" for uploads).
    catalog: the model files. user_data: the web page's settings and files of users. extensions: web pages of packs.
    pack_content: other files of packs for the web page. fetch: returns a preview image that a replica keeps, None if it
    is lost. relay: (pool, call) -> the id of the pool's replica that handles a call of a node pack's route, then its
    answer; raises NotReadyError; None without packs. metrics: returns the cluster's metrics in Prometheus' text format;
    None where nothing exports them. logs: yields the log lines that somebody wants to read, as JSON; None where no file
    has them. pools: as the planner sees them; an empty sequence means that all
    share every workflow. shared_packs: whether tenants may use what does not separate their files: pools that are a
    ComfyUI, and routes of node packs.
    """

    def __init__(
        self,
        scheduler: SchedulerClient,
        store: Store,
        choices: Callable[[str], Sequence[str]],
        limits: Limits,
        *,
        catalog: Catalog | None = None,
        user_data: UserData | None = None,
        extensions: Extensions | None = None,
        pack_content: PackContent | None = None,
        fetch: Callable[[Any], Awaitable[Any]] | None = None,
        relay: Callable[[str, PackCall], AsyncGenerator[str | Piece]] | None = None,
        metrics: Callable[[], Awaitable[str]] | None = None,
        logs: Callable[[LogQuery], AsyncIterator[str]] | None = None,
        pools: Sequence[Pool] = (),
        shared_packs: bool = False,
    ) -> None:
        self.limits = limits
        self.rendering = asyncio.Semaphore(self.limits.sizes.renders)
        """Limits how many images are rendered at once."""
        self.store = store
        self.job_store = store
        """The store for a job's outputs, without quotas."""
        self.catalog = catalog or Catalog(Path("models"))
        self._model_check = ModelCheck(self.catalog)
        self.extensions = extensions or Extensions(None)
        self.pack_content = pack_content or PackContent(None)
        self.fetch = fetch or _as_it_is
        self.relay = relay
        self.metrics = metrics
        self.logs = logs
        self.user_data = user_data or UserData(Path("user"))
        self._shown_jobs = JobListCache()
        self._scheduler = scheduler
        self._jobs = TenantJobs(scheduler, "")
        self._choices = choices
        self._pools = pools
        self.shared_packs = shared_packs
        self._operators = self
        self._tenants: LRUCache[str, Service] = LRUCache(TENANTS)

    @property
    def tenant(self) -> str:
        """The tenant that the service is for; "" is the operator, who sees everything."""
        return self._jobs.tenant

    def for_tenant(self, tenant: str) -> Service:
        """Return the service for one tenant, without the jobs and files of others; "" is the operator."""
        whole = self._operators
        if not tenant:
            return whole
        if (bound := whole._tenants.get(tenant)) is None:
            bound = whole._tenants[tenant] = whole._bound(tenant)
        return bound

    def _bound(self, tenant: str) -> Service:
        bound, whole = copy.copy(self), self
        bound._jobs = TenantJobs(whole._scheduler, tenant)
        bound.store = bound.job_store = store_of(whole.store, tenant)
        meter = None
        if whole.limits.quotas.count_bytes:
            loop = asyncio.get_running_loop()

            def ask(query: Query[Any]) -> Any:
                """Ask from a thread; on the event loop it would deadlock."""
                return asyncio.run_coroutine_threadsafe(bound.query(query), loop).result()

            meter = Meter(ask, whole.limits.quotas.of(tenant).bytes_stored)
            bound.store = MeteredStore(bound.store, tenant, meter)
            bound.job_store = bound.store.unbounded()
        bound.user_data = whole.user_data.within(tenant, meter)
        bound._choices = bound._own_choices
        if not whole.shared_packs:
            bound._pools = [pool for pool in whole._pools if not pool.whole]
        return bound

    def _own_choices(self, folder: str) -> Sequence[str]:
        """Return the file names that a COMBO over a folder allows: the tenant's uploads, or models."""
        if folder in ("input", INPUT_FOLDERS):
            return choices(self.store, self.catalog, folder)
        return self._operators._choices(folder)

    @property
    def _check(self) -> SubmissionCheck:
        files = (self._choices, self.store)
        return SubmissionCheck(self._scheduler, *files, self._pools, self.limits, self._model_check, self.tenant)

    async def submit(
        self,
        body: Mapping[str, Any],
        *,
        partial: bool = False,
        labels: Mapping[str, str] | None = None,
        claims: Claims = NO_CLAIMS,
    ) -> Submitted:
        """Check a submission and queue it; the job is in the database when this returns.

        partial: leave out the output nodes that cannot run as long as one can, as ComfyUI does, unless a node class is
        unknown; else any problem refuses all. labels: the job's metadata; claims: records that it takes, such as an
        idempotency key. Errors: InvalidSubmissionError for the keys, InvalidGraphError with every problem of the graph,
        ClaimRefusedError.
        """
        submission, targets = parse_submission(body)
        submission = replace(submission, labels=labels or {}, claims=claims)
        submission, problems = await self._check.settled(submission, targets, partial=partial)
        accepted = await self._jobs.submit(replace(submission, extra_data=with_request_id(submission.extra_data)))
        with log.about(job=accepted.job_id):
            _log.info("accepted")
        return Submitted(accepted.job_id, accepted.number, tuple(problems), accepted.held, accepted.left)

    async def answered(self, submitted: Submitted) -> None:
        """Note that the submission has been answered: from here on the client's websockets get the job's events."""
        if submitted.held:
            await self._jobs.answered(submitted.job_id)

    def is_job_id(self, value: object) -> bool:
        """Whether a value has the form of a job's id; operators say ID@TENANT of a tenant's."""
        return self._jobs.is_id(value)

    async def cancel(self, job_id: str) -> bool:
        """Cancel a job; False if it has ended or is unknown."""
        return await self._jobs.cancel(job_id)

    async def cancel_all(self, job_ids: Sequence[str]) -> bool:
        """Cancel jobs, whether they wait or run; False if all have ended or are unknown."""
        return await self._jobs.cancel_all(job_ids) > 0

    async def interrupt(self, job_id: str | None = None) -> None:
        """Cancel the running job of this id, or every running job."""
        await self._jobs.cancel_all(None if job_id is None else [job_id], "running")

    async def withdraw(self, job_ids: Sequence[str] | None = None) -> None:
        """Cancel jobs that wait: these, or all."""
        await self._jobs.cancel_all(job_ids, "queued")

    async def warm(self, models: Sequence[str], pool: str | None) -> tuple[str, ...]:
        """Have replicas load models ahead; as `SchedulerClient.warm`. Errors: also for models that are not there."""
        for model in models:
            if not (recipes := warm_recipes(model)):
                raise InvalidSubmissionError(f"{abbreviated(model)} must be {WARM_FORM}")
            folder = recipes[0].folder
            names = (await self.choices([folder]))[folder]
            for name in recipes[0].files:
                if name not in names:
                    known = f"{folder}/{name}"
                    raise InvalidSubmissionError(f"there is no model {abbreviated(known)}{did_you_mean(name, names)}")
        return await self._scheduler.warm(models, pool)

    async def pause(self, pause: Pause, *, paused: bool, hand_over: bool = False) -> tuple[Pause, ...]:
        """Pause, drain or undo that; as `SchedulerClient.pause`. Errors: also for a tenant that is nobody.

        hand_over: what is drained hands its tasks over rather than to end them.
        """
        if paused and pause.kind == "tenant":
            await self._check_tenant(pause.name)
        pauses = await self._scheduler.pause(pause, paused)
        if hand_over:
            await self._scheduler.hand_over(pause)
        return pauses

    async def _check_tenant(self, name: str) -> None:
        """Check that somebody has this name: by a key, a job or a quota. Errors: InvalidSubmissionError."""
        listed = await self._operators.query(ListTenants(time.time()))
        known = {*self.limits.quotas.tenants, *(one["tenant"] for one in listed)} - {""}
        if name not in known:
            hint = did_you_mean(name, known)
            raise InvalidSubmissionError(f"no tenant {abbreviated(name)} has a key, a job or a quota{hint}")

    async def free(self, *, weights: bool, results: bool) -> None:
        """Let every replica free memory when it is idle."""
        if weights or results:
            await self._scheduler.free(Free(weights, results))

    async def forget(self, job_ids: Sequence[str] | None = None) -> None:
        """Forget ended jobs: these, or all."""
        await self._jobs.forget(job_ids)

    def feed(self, client_id: str) -> str:
        """Return the id of a client's stream of events."""
        return feed_of(self.tenant, client_id)

    async def remove(self, job_ids: Sequence[str] | None = None) -> None:
        """Forget ended jobs, these or all, and delete their files."""
        await self._jobs.remove(job_ids)

    async def delete(self, job_id: str) -> None:
        """Delete a job and its files. Errors: JobMissingError, JobUnfinishedError."""
        count, unfinished = await self._jobs.remove([job_id]) if self.is_job_id(job_id) else (0, ())
        if unfinished:
            raise JobUnfinishedError(f"job {job_id} has not ended; cancel it before it is deleted")
        if not count:
            raise JobMissingError(f"no job has the id {abbreviated(job_id)}")

    async def attach(self, client_id: str, token: str) -> Attached:
        """Attach a socket to a client's events; as `SchedulerClient.attach`."""
        return await self._scheduler.attach(self.feed(client_id), token)

    async def unsent_events(self, readers: Mapping[str, Reader], queue: int, timeout_s: float) -> UnsentEvents:
        """Return the events that clients have not been sent, by feed; as `SchedulerClient.unsent_events`."""
        return await self._scheduler.unsent_events(readers, queue, timeout_s)

    async def job(self, job_id: str) -> JobView | None:
        """Return a job without its credentials, or None."""
        view = await self._jobs.job(job_id)
        return None if view is None else without_secrets(view)

    async def progress(self, job_id: str) -> JobProgress | None:
        """Return an unfinished job's position and progress; as `SchedulerClient.progress`."""
        return await self._jobs.progress(job_id)

    @property
    def history_s(self) -> float | None:
        """How long after its end a job is kept; None without a time limit."""
        return self.limits.retention.bounds("history", self.tenant).age_s

    async def preview(self, job_id: str) -> tuple[str, bytes] | None:
        """Return a running job's newest preview, the node's id and a JPEG; None if there is none."""
        event = await self._jobs.preview(job_id)
        image = None if event is None else await self.fetch(event.data["image"])
        return None if event is None or image is None else (str(event.data["node"]), image)

    async def query(self, query: Query[T]) -> T:
        """Run a query of the database for the tenant; as `SchedulerClient.query`.

        Errors: TypeError for a query that is scoped to neither tenant nor server, or to the server if this is a
        tenant's.
        """
        if isinstance(query, TenantScoped):
            asked = replace(cast(Any, query), tenant=self.tenant) if self.tenant else query
        elif isinstance(query, ServerScoped) and not self.tenant:
            asked = query
        else:
            whose = f"tenant {self.tenant}" if self.tenant else "the operator"
            raise TypeError(f"{type(query).__name__} is no query that {whose} may run")
        return await self._scheduler.query(asked)

    async def queue(self) -> QueueView:
        """Return the first unfinished jobs without their credentials, within the limits of one answer."""
        bounds = QueueBounds(self.limits.queue_items, self.limits.queue_bytes)
        view = await self._jobs.queue(bounds)
        running, pending = (tuple(map(_listed, items)) for items in (view.running, view.pending))
        items = [*running, *pending]
        if len(items) < view.count.running + view.count.pending:
            refused("ingress.queue_items")
        if items and not items[-1].prompt:
            refused("ingress.queue_bytes")
        return replace(view, running=running, pending=pending)

    async def list_jobs(self, query: JobQuery, show: Show) -> tuple[dict[str, bytes], int]:
        """Return the rendered jobs that a query finds; as `JobListCache.list`."""
        return await self._shown_jobs.list(self._jobs, query, show)

    async def count(self) -> QueueCount:
        """Return how many jobs have not ended."""
        return await self._scheduler.count(self.tenant)

    async def events(self, job_id: str, after: int, timeout_s: float) -> JobEvents:
        """Return the job's events past the cursor, waiting for the first. Errors: JobMissingError."""
        if found := await self._jobs.events(job_id, after, min(timeout_s, self.limits.poll_s)):
            return JobEvents(tuple(found), any(event.last for event in found))
        # Read only at the end, as a job is as large as its prompt. If it has ended since, the events show it.
        view = await self.job(job_id)
        if view is None:
            raise JobMissingError(f"no job has the id {abbreviated(job_id)}")
        if view.state not in ENDINGS:
            return JobEvents((), False)
        return JobEvents(tuple(await self._jobs.events(job_id, after, 0.0)), True)

    async def cluster(self) -> ClusterView:
        """Return the cluster's hosts and replicas; of the owners of jobs that ended replicas, a tenant sees only
        itself.
        """
        view = await self._scheduler.cluster()
        if not self.tenant:
            return view
        return replace(view, backoffs=tuple(one for one in view.backoffs if one.tenant == self.tenant))

    async def ready(self) -> Sequence[ReplicaTrouble]:
        """Return which replicas cannot work. Errors: subclasses of UnavailableError while no job could be committed."""
        return await self._scheduler.ready()

    async def job_trace(self, job_id: str) -> Sequence[tuple[float, str]]:
        """Return the scheduler's latest events about an unfinished job; as `SchedulerClient.job_trace`."""
        return await self._jobs.job_trace(job_id)

    async def specs(self) -> Mapping[str, NodeSpec]:
        """Return every node class that some pool can run; where pools differ, as the shared ones have it."""
        known, _ = await self._check.known()
        return {name: spec for specs in reversed(known.values()) for name, spec in specs.items()}

    async def missing_classes(self, names: Iterable[str]) -> dict[str, str]:
        """Return why node classes cannot run here, in sentences for users, by those of the names that cannot."""
        known = await self.specs()
        comfyuis = [pool.name for pool in self._pools if pool.whole]
        there = f"The pool {' or '.join(comfyuis)}, a ComfyUI, has no such class either."
        elsewhere = there if comfyuis else "A pool that is a ComfyUI would run it, if the operator adds one."
        unknown = "it is of no node pack that is installed here"
        return {name: f"Here {NOT_THERE.get(name, unknown)}. {elsewhere}" for name in names if name not in known}

    async def where_workflows_run(self, needed: Mapping[str, frozenset[str]]) -> dict[str, WhereItRuns]:
        """Return where workflows run, by name. needed: the node classes that each needs."""
        known, _ = await self._check.known()
        here = known.pop(SHARED).keys()
        return {
            name: _where(classes, here, [specs.keys() for specs in known.values()]) for name, classes in needed.items()
        }

    async def routes(self) -> Mapping[str, tuple[PackRoute, ...]]:
        """Return the routes of node packs by pool; as `SchedulerClient.routes`."""
        return await self._scheduler.routes()

    async def deliver_pack_frame(self, replica_id: str, socket: str, frame: PackFrame) -> None:
        """Send a client's message on a node pack's websocket to its replica."""
        await self._scheduler.deliver_pack_frame(replica_id, SocketFrame(socket, frame))

    async def handled(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a submission after the prompt handlers of node packs; unchanged without any.

        They run in one replica of each pool that handles the requests of a pack with prompt handlers. Errors:
        NotReadyError.
        """
        if self.relay is None:
            return body
        for pool, routes in (await self.routes()).items():
            if not any(route.method == "POST" and route.pattern == re.escape(ON_PROMPT) for route in routes):
                continue
            call = PackCall("POST", ON_PROMPT, ((b"content-type", b"application/json"),), json.dumps(body).encode())
            async with aclosing(self.relay(pool, call)) as pieces:
                answers = [piece async for piece in pieces]
            content = b"".join(
                p if isinstance(p, bytes) else p.body for p in answers if isinstance(p, bytes | PackAnswer)
            )
            changed = json.loads(content)
            if isinstance(changed, dict) and isinstance(answers[1], PackAnswer) and answers[1].status == 200:
                body = changed
        return body

    async def choices(self, folders: Iterable[str]) -> dict[str, list[str]]:
        """Return the file names that a COMBO over each folder allows."""
        wanted = sorted(set(folders))
        return await asyncio.to_thread(lambda: {folder: list(self._choices(folder)) for folder in wanted})

    async def models(self) -> dict[str, list[str]]:
        """Return the model files by folder, for every folder that some node class loads from."""
        specs = await self._scheduler.specs()
        return await self.choices({i.folder for spec in specs.values() for i in spec.inputs if i.folder} - set(AREAS))

    async def stat(self, ref: FileRef) -> FileStat:
        """Return a stored file's size, age and tag. Errors: FileMissingError."""
        return await asyncio.to_thread(self.store.stat, ref)

    async def open(self, ref: FileRef, span: range | None = None) -> BinaryIO:
        """Open a stored file for reading; its reads block, so do them in a thread. Errors: FileMissingError."""
        return await asyncio.to_thread(self.store.open, ref, span)

    async def link(self, ref: FileRef, content_type: str, disposition: str) -> str | None:
        """Return a URL of the file in the store itself, if the store can sign links; see `Store.link`."""
        return await asyncio.to_thread(self.store.link, ref, content_type, disposition)


async def _as_it_is(value: Any) -> Any:
    return value


def _listed(item: QueueItem) -> QueueItem:
    return item._replace(extra_data=without_credentials(item.extra_data)) if item.extra_data else item


def _where(classes: frozenset[str], here: Set[str], pools: Sequence[Set[str]]) -> WhereItRuns:
    """Return where a workflow of these classes runs. pools: the classes of each that is a ComfyUI."""
    if not (lacks := tuple(sorted(classes - here))):
        return WhereItRuns("here")
    return WhereItRuns("pool" if any(classes <= pool for pool in pools) else "nowhere", lacks)
