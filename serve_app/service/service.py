"""What both HTTP dialects render: submitting, watching and cancelling jobs, and reading stored files.

It knows the scheduler's client and the store; it knows no HTTP.
"""

from __future__ import annotations

import asyncio
import copy
import json
import re
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

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
from serve_app.packs.routes import ON_PROMPT, PackAnswer, PackCall, PackFrame, PackRoute, Piece
from serve_app.recipe import WARM_FORM, warm_recipes
from serve_app.scheduler.protocol.client import (
    Attached,
    JobView,
    News,
    QueueBounds,
    QueueCount,
    QueueItem,
    QueueView,
    Reader,
    SchedulerClient,
    Standing,
)
from serve_app.scheduler.protocol.cluster_view import ClusterView, Trouble
from serve_app.scheduler.protocol.messages import Free, SocketSaid
from serve_app.service.request_limits import Limits
from serve_app.service.shown_jobs import Show, ShownJobs, without_secrets
from serve_app.service.submissions import SubmissionCheck, as_said, read
from serve_app.service.tenant_jobs import TenantJobs
from serve_app.store.database.changes import NO_CLAIMS, Claims, JobQuery, feed_of
from serve_app.store.database.queries import Inquiry
from serve_app.store.database.query_scope import OfServer, OfTenant
from serve_app.store.files.input_folders import INPUT_FOLDERS, choices
from serve_app.store.files.store import AREAS, FileRef, FileStat, Store
from serve_app.store.models.catalog import Catalog
from serve_app.store.models.check import ModelCheck
from serve_app.store.page.extensions import Extensions
from serve_app.store.page.pack_content import PackContent
from serve_app.store.page.userdata import UserData
from serve_app.store.tenants.credentials import without_credentials
from serve_app.store.tenants.metered import Meter, MeteredStore
from serve_app.store.tenants.pauses import Pause
from serve_app.store.tenants.tenants import store_of

T = TypeVar("T")

TENANTS = 1000
"""Tenants that a process keeps a service ready for."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job that is in the database, why some of its output nodes were left out, and what is left of quotas.

    held: whether its client's sockets are told of it only once it is known to have been answered.
    """

    job_id: str
    number: float
    problems: tuple[Problem, ...] = ()
    held: bool = False
    left: tuple[QuotaLeft, ...] = ()


@dataclass(frozen=True, slots=True)
class JobEvents:
    """A stretch of a job's stream; `last` when nothing follows it."""

    events: tuple[Event, ...]
    last: bool


class Service:
    """The server's behaviour without its wire formats.

    choices: folder -> the file names a COMBO over that folder allows ("checkpoints", …, or "input" for uploads).
    catalog: the model files. user_data: what the web page keeps for its users. extensions: pages of packs.
    pack_content: what else packs bring for the web page. fetch: returns what a replica has put away for clients, None
    if it is lost. relay: (pool, call) -> the id of the replica of the pool that takes a call of a node pack's route,
    then what it answers, or NotReadyError; None where there are no packs. pools: as the planner sees them; none stands
    for some that share every workflow. shared_packs: whether tenants may use what keeps their files not apart: pools
    that are a ComfyUI, and routes of node packs.
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
        pools: Sequence[Pool] = (),
        shared_packs: bool = False,
    ) -> None:
        self.limits = limits
        self.rendering = asyncio.Semaphore(self.limits.sizes.renders)
        """Held while an image is drawn."""
        self.store = store
        self.job_store = store
        """The store for what a job has made, which no quota refuses."""
        self.catalog = catalog or Catalog(Path("models"))
        self._model_check = ModelCheck(self.catalog)
        self.extensions = extensions or Extensions(None)
        self.pack_content = pack_content or PackContent(None)
        self.fetch = fetch or _as_it_is
        self.relay = relay
        self.user_data = user_data or UserData(Path("user"))
        self._shown_jobs = ShownJobs()
        self._scheduler = scheduler
        self._jobs = TenantJobs(scheduler, "")
        self._choices = choices
        self._pools = pools
        self.shared_packs = shared_packs
        self._operators = self
        self._tenants: OrderedDict[str, Service] = OrderedDict()

    @property
    def tenant(self) -> str:
        """Whose it is: "" is the operator's, who sees what is everyone's."""
        return self._jobs.tenant

    def within(self, tenant: str) -> Service:
        """Return the service as one tenant has it: what others have is not there; "" is the operator."""
        whole = self._operators
        if not tenant:
            return whole
        if (bound := whole._tenants.get(tenant)) is None:
            bound = whole._tenants[tenant] = whole._bound(tenant)
            if len(whole._tenants) > TENANTS:
                whole._tenants.popitem(last=False)
        whole._tenants.move_to_end(tenant)
        return bound

    def _bound(self, tenant: str) -> Service:
        bound, whole = copy.copy(self), self
        bound._jobs = TenantJobs(whole._scheduler, tenant)
        bound.store = bound.job_store = store_of(whole.store, tenant)
        meter = None
        if whole.limits.quotas.count_bytes:
            loop = asyncio.get_running_loop()

            def ask(inquiry: Inquiry[Any]) -> Any:
                """Ask from a thread; never from the loop, which would wait for itself."""
                return asyncio.run_coroutine_threadsafe(bound.inquire(inquiry), loop).result()

            meter = Meter(ask, whole.limits.quotas.of(tenant).bytes_stored)
            bound.store = MeteredStore(bound.store, tenant, meter)
            bound.job_store = bound.store.unbounded()
        bound.user_data = whole.user_data.within(tenant, meter)
        bound._choices = bound._own_choices
        if not whole.shared_packs:
            bound._pools = [pool for pool in whole._pools if not pool.whole]
        return bound

    def _own_choices(self, folder: str) -> Sequence[str]:
        """Return what a choice from a folder may be: a tenant's uploads, everyone's models."""
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
        unknown; else any problem refuses all. labels: what the job is called; claims: what it takes hold of. Errors:
        InvalidSubmissionError for the keys, InvalidGraphError with every problem of the graph, ClaimRefusedError.
        """
        submission, targets = read(body)
        submission = replace(submission, labels=labels or {}, claims=claims)
        submission, problems = await self._check.settled(submission, targets, partial=partial)
        accepted = await self._jobs.submit(submission)
        return Submitted(accepted.job_id, accepted.number, tuple(problems), accepted.held, accepted.left)

    async def answered(self, submitted: Submitted) -> None:
        """Note that the client has been answered: from here on its sockets are told of the job."""
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
                raise InvalidSubmissionError(f"{as_said(model)} must be {WARM_FORM}")
            folder = recipes[0].folder
            names = (await self.choices([folder]))[folder]
            for name in recipes[0].files:
                if name not in names:
                    known = f"{folder}/{name}"
                    raise InvalidSubmissionError(f"there is no model {as_said(known)}{did_you_mean(name, names)}")
        return await self._scheduler.warm(models, pool)

    async def pause(self, pause: Pause, *, paused: bool) -> tuple[Pause, ...]:
        """Hold back what has not started, or let it go on; as `SchedulerClient.pause`."""
        return await self._scheduler.pause(pause, paused)

    async def free(self, *, weights: bool, results: bool) -> None:
        """Let every replica free memory when it has nothing to do."""
        if weights or results:
            await self._scheduler.free(Free(weights, results))

    async def forget(self, job_ids: Sequence[str] | None = None) -> None:
        """Forget ended jobs: these, or all."""
        await self._jobs.forget(job_ids)

    def feed(self, client_id: str) -> str:
        """Return what a client's events are known by."""
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
            raise JobMissingError(f"no job has the id {as_said(job_id)}")

    async def attach(self, client_id: str, token: str) -> Attached:
        """Let a socket read for a client; as `SchedulerClient.attach`."""
        return await self._scheduler.attach(self.feed(client_id), token)

    async def news(self, readers: Mapping[str, Reader], queue: int, timeout_s: float) -> News:
        """Return what clients have not been sent, by their feeds; as `SchedulerClient.news`."""
        return await self._scheduler.news(readers, queue, timeout_s)

    async def job(self, job_id: str) -> JobView | None:
        """Return a job without its credentials, or None."""
        view = await self._jobs.job(job_id)
        return None if view is None else without_secrets(view)

    async def standing(self, job_id: str) -> Standing | None:
        """Return how a job stands; as `SchedulerClient.standing`."""
        return await self._jobs.standing(job_id)

    @property
    def history_s(self) -> float | None:
        """How long after its end a job is kept; None where no time bounds it."""
        return self.limits.retention.bounds("history", self.tenant).age_s

    async def preview(self, job_id: str) -> tuple[str, bytes] | None:
        """Return the newest picture of a job that runs, a JPEG, and the node it is of; None if there is none."""
        event = await self._jobs.preview(job_id)
        image = None if event is None else await self.fetch(event.data["image"])
        return None if event is None or image is None else (str(event.data["node"]), image)

    async def inquire(self, inquiry: Inquiry[T]) -> T:
        """Return what the database answers a tenant; as `SchedulerClient.inquire`. Whose an inquiry is, its type says.

        Errors: TypeError for one that says nothing, or that is the server's alone and comes from a tenant.
        """
        if isinstance(inquiry, OfTenant):
            asked = replace(cast(Any, inquiry), tenant=self.tenant) if self.tenant else inquiry
        elif isinstance(inquiry, OfServer) and not self.tenant:
            asked = inquiry
        else:
            whose = f"tenant {self.tenant}" if self.tenant else "the operator"
            raise TypeError(f"{type(inquiry).__name__} is no inquiry of a tenant's, and {whose} asks")
        return await self._scheduler.inquire(asked)

    async def queue(self) -> QueueView:
        """Return the first of the unfinished jobs without their credentials, as far as one answer goes."""
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
        """Return what is shown of the jobs that a query finds; as `ShownJobs.list`."""
        return await self._shown_jobs.list(self._jobs, query, show)

    async def count(self) -> QueueCount:
        """Return how many jobs have not ended."""
        return await self._scheduler.count(self.tenant)

    async def events(self, job_id: str, after: int, timeout_s: float) -> JobEvents:
        """Return the job's events past the cursor, waiting for the first. Errors: JobMissingError."""
        if found := await self._jobs.events(job_id, after, min(timeout_s, self.limits.poll_s)):
            return JobEvents(tuple(found), any(event.last for event in found))
        # Asked for only now, as a job is as large as its prompt. An ending since then is in the events.
        view = await self.job(job_id)
        if view is None:
            raise JobMissingError(f"no job has the id {as_said(job_id)}")
        if view.state not in ENDINGS:
            return JobEvents((), False)
        return JobEvents(tuple(await self._jobs.events(job_id, after, 0.0)), True)

    async def cluster(self) -> ClusterView:
        """Return the cluster's hosts and replicas; of those who have ended replicas, a tenant sees itself alone."""
        view = await self._scheduler.cluster()
        if not self.tenant:
            return view
        return replace(view, backoffs=tuple(one for one in view.backoffs if one.tenant == self.tenant))

    async def ready(self) -> Sequence[Trouble]:
        """Return which replicas cannot work. Errors: UnavailableError's kinds while no job could be committed."""
        return await self._scheduler.ready()

    async def story(self, job_id: str) -> Sequence[tuple[float, str]]:
        """Return what happened to an unfinished job lately; as `SchedulerClient.story`."""
        return await self._jobs.story(job_id)

    async def specs(self) -> Mapping[str, NodeSpec]:
        """Return every node class some pool can run; of one that pools differ in, as the shared ones have it."""
        known, _ = await self._check.known()
        return {name: spec for specs in reversed(known.values()) for name, spec in specs.items()}

    async def routes(self) -> Mapping[str, tuple[PackRoute, ...]]:
        """Return the routes of node packs by pool; as `SchedulerClient.routes`."""
        return await self._scheduler.routes()

    async def hear(self, replica_id: str, socket: str, frame: PackFrame) -> None:
        """Tell a replica what a client has said on a websocket of a node pack's."""
        await self._scheduler.hear(replica_id, SocketSaid(socket, frame))

    async def handled(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a submission as the prompt handlers of node packs leave it; as it is where there are none.

        They run in one replica of each pool that answers for a pack which has some. Errors: NotReadyError.
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
        """Return the file names in folders, as a COMBO over them allows."""
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
        """Return a URL of the file in the store itself, where the store gives out links; see `Store.link`."""
        return await asyncio.to_thread(self.store.link, ref, content_type, disposition)


async def _as_it_is(value: Any) -> Any:
    return value


def _listed(item: QueueItem) -> QueueItem:
    return item._replace(extra_data=without_credentials(item.extra_data)) if item.extra_data else item
