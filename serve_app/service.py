"""What both HTTP dialects render: submitting, watching and cancelling jobs, and reading stored files.

It knows the graph, the scheduler's client and the store; it knows no HTTP. What a body may hold is decided here once,
so the dialects cannot drift apart. Keys: ComfyUI's own (`server.py`, POST /prompt) and the contract's.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import json
import math
import re
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

from serve_app.errors import (
    InvalidGraphError,
    InvalidSubmissionError,
    JobMissingError,
    JobUnfinishedError,
    Problem,
    QuotaLeft,
    UnavailableError,
    did_you_mean,
)
from serve_app.events import ENDINGS, Event
from serve_app.graph.destination import SHARED, destinations
from serve_app.graph.files import FEW_NODES, is_quick
from serve_app.graph.graph import Graph
from serve_app.graph.job_size import within_quota
from serve_app.graph.latent_size import within_cells
from serve_app.graph.model_files import with_known_files
from serve_app.graph.parse import parse, render
from serve_app.graph.plan import Pool
from serve_app.graph.spec import NodeSpec
from serve_app.graph.validate import Validated, needs_prevalidation, validate, with_findings
from serve_app.limits import NO_QUOTAS, ModelChangeLimits, Quotas, SizeLimits, WebhookLimits, refused
from serve_app.nodes.later import NOT_THERE
from serve_app.nodes.replacements import replaced
from serve_app.nodes.routes import ON_PROMPT, PackAnswer, PackCall, PackFrame, PackRoute, Piece
from serve_app.scheduler.client import (
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
    Submission,
)
from serve_app.scheduler.cluster_view import ClusterView
from serve_app.scheduler.messages import Free, SocketSaid
from serve_app.scheduler.time_limit import LONGEST_DEADLINE_S
from serve_app.shown_jobs import Show, ShownJobs, without_secrets
from serve_app.store.catalog import Catalog
from serve_app.store.changes import NO_CLAIMS, Claims, JobQuery, feed_of
from serve_app.store.credentials import without_credentials
from serve_app.store.extensions import Extensions
from serve_app.store.input_folders import INPUT_FOLDERS, choices
from serve_app.store.inquiries import Inquiry
from serve_app.store.metered import Meter, MeteredStore
from serve_app.store.model_check import ModelCheck
from serve_app.store.pack_content import PackContent
from serve_app.store.pauses import Pause
from serve_app.store.retention import RetentionRules
from serve_app.store.store import AREAS, FileRef, FileStat, Store
from serve_app.store.tenants import store_of
from serve_app.store.userdata import UserData
from serve_app.store.whose import OfServer, OfTenant
from serve_app.values import WARM_FORM, warm_recipes

T = TypeVar("T")

KEYS = ("prompt", "client_id", "extra_data", "prompt_id", "number", "front", "partial_execution_targets")
"""What a submission may hold: the contract's two keys and ComfyUI's other five."""

COMMAND_BYTES, IDS = 1_000_000, 1000
QUEUE_ITEMS, QUEUE_BYTES = 2000, 1_000_000
TENANTS = 1000
"""Tenants that a process keeps a service ready for."""

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class BodyBound(NamedTuple):
    """How large a body may be, and the key of the configuration that says so."""

    bytes: int
    key: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for.

    body_bytes: size of a submission or of a user's file. upload_bytes: of an upload. command_bytes, ids: size of any
    other body, such as settings, and how many jobs it may name. poll_s: length of a long poll. sizes: of what is in
    the request, or is drawn for it. latent_cells: what a sampler of the shared pools may work on; None is no limit.
    queue_items, queue_bytes: what an answer carries of the queue, as QueueBounds. webhooks: how many, and where.
    retention: how long what is told of jobs is kept. quotas: of tenants. model_changes: of model files that admins
    upload; None where nobody may.
    """

    body_bytes: int
    upload_bytes: int
    command_bytes: int = COMMAND_BYTES
    ids: int = IDS
    poll_s: float = 60.0
    sizes: SizeLimits = field(default_factory=SizeLimits)
    latent_cells: int | None = None
    queue_items: int = QUEUE_ITEMS
    queue_bytes: int = QUEUE_BYTES
    webhooks: WebhookLimits = field(default_factory=WebhookLimits)
    retention: RetentionRules = field(default_factory=RetentionRules)
    quotas: Quotas = NO_QUOTAS
    model_changes: ModelChangeLimits | None = None

    @property
    def body(self) -> BodyBound:
        """Of a submission, or of a user's file."""
        return BodyBound(self.body_bytes, "ingress.max_body_bytes")

    @property
    def upload(self) -> BodyBound:
        """Of an upload, its whole form."""
        return BodyBound(self.upload_bytes, "ingress.max_upload_bytes")

    @property
    def command(self) -> BodyBound:
        """Of any other body."""
        return BodyBound(self.command_bytes, "ingress.max_command_bytes")


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job that is in the database, why some of its output nodes were left out, and what is left of quotas."""

    job_id: str
    number: float
    problems: tuple[Problem, ...] = ()
    client_id: str | None = None
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
        self._shown_jobs = ShownJobs(scheduler)
        self._scheduler = scheduler
        self._choices = choices
        self._pools = pools
        self.shared_packs = shared_packs
        self._operators = self
        self._tenants: OrderedDict[str, Service] = OrderedDict()
        self.tenant = ""
        """Whose it is: "" is the operator's, who sees what is everyone's."""

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
        bound.tenant = tenant
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
        submission, targets = _read(body)
        submission = replace(submission, labels=labels or {}, claims=claims, tenant=self.tenant)
        self._check_pool(submission.extra_data)
        pool, validated = await self._settle(submission, targets, partial=partial)
        if pool != SHARED:
            # Kept with the job, so that it is planned again as it was checked.
            submission = replace(submission, extra_data={**submission.extra_data, "pool": pool})
        prompt = _prompt(validated.graph, submission.prompt)
        accepted = await self._scheduler.submit(replace(submission, prompt=prompt, outputs=tuple(validated.outputs)))
        problems = tuple(validated.problems)
        return Submitted(accepted.job_id, accepted.number, problems, submission.client_id, accepted.left)

    async def answered(self, submitted: Submitted) -> None:
        """Note that the client has been answered: from here on its sockets are told of the job."""
        if submitted.client_id is not None:
            await self._scheduler.answered(submitted.job_id)

    def _check_pool(self, extra_data: Mapping[str, Any]) -> None:
        names = [SHARED, *(pool.name for pool in self._pools)]
        if "pool" in extra_data and extra_data["pool"] not in names:
            reason = f"must be one of {', '.join(names)}, not {_shown(extra_data['pool'])}"
            raise InvalidSubmissionError(f"'pool' in 'extra_data' {reason}")

    async def _settle(
        self, submission: Submission, targets: Sequence[str] | None, *, partial: bool
    ) -> tuple[str, Validated]:
        """Return the first destination where the whole of a workflow can run, else where some of its outputs can.

        Errors: as `submit`; NotReadyError if it needs a class that only a pool may have which has never said its own.
        """
        known, silent = await self._known()
        few = len(submission.prompt) <= FEW_NODES
        parsed = self._parsed(submission.prompt) if few else await asyncio.to_thread(self._parsed, submission.prompt)
        graph = replaced(parsed, known[SHARED])
        asked = submission.extra_data.get("pool")
        if asked in silent:
            raise silent[asked]
        try:
            able = destinations(graph, known, self._pools, asked)
        except InvalidGraphError:
            for reason in silent.values():
                raise reason from None
            raise
        found: list[tuple[str, Validated]] = []
        for name in able:
            unsupported = NOT_THERE if name == SHARED else {}
            check = functools.partial(validate, graph, known[name], self._choices, targets, unsupported)
            quick = is_quick(graph, known[name])
            # Reading the choices lists directories, which may be slow on a shared volume.
            validated = check() if quick else await asyncio.to_thread(check)
            if name == SHARED and self.limits.latent_cells is not None:
                validated = within_cells(validated, self.limits.latent_cells)
            if name == SHARED and not quick:
                refusal = self._model_check.refusal
                validated = await asyncio.to_thread(with_known_files, validated, known[name], refusal)
            if name == SHARED and needs_prevalidation(validated, known[name]):
                checked = await self._scheduler.check(validated.graph, validated.outputs)
                validated = with_findings(validated, checked.problems, checked.fingerprints)
            grave = any(not partial or problem.type == "missing_node_type" for problem in validated.problems)
            if not validated.problems or (validated.outputs and not grave):
                within_quota(validated.graph, validated.outputs, known[name], self.limits.quotas.of(self.tenant))
                return name, validated
            found.append((name, validated))
        raise InvalidGraphError(found[0][1].problems)

    async def _known(self) -> tuple[dict[str, Mapping[str, NodeSpec]], dict[str, UnavailableError]]:
        """Return the node classes by destination, and why those of some are not known."""
        known = {SHARED: await self._scheduler.specs()}
        silent: dict[str, UnavailableError] = {}
        for pool in self._pools:
            if pool.whole:
                try:
                    known[pool.name] = await self._scheduler.specs(pool.name)
                except UnavailableError as error:
                    silent[pool.name] = error
        return known, silent

    def _parsed(self, prompt: Mapping[str, Any]) -> Graph:
        if len(prompt) > (most := self.limits.sizes.graph_nodes):
            refused("limits.graph_nodes")
            message = f"the prompt has {len(prompt)} nodes; limits.graph_nodes of the configuration allows {most}"
            raise InvalidGraphError([Problem("too_many_nodes", message)])
        return parse(prompt)

    async def cancel(self, job_id: str) -> bool:
        """Cancel a job; False if it has ended or is unknown."""
        return is_job_id(job_id) and await self._scheduler.cancel(job_id, self.tenant)

    async def cancel_all(self, job_ids: Sequence[str]) -> bool:
        """Cancel jobs, whether they wait or run; False if all have ended or are unknown."""
        return await self._scheduler.cancel_all(job_ids, None, self.tenant) > 0

    async def interrupt(self, job_id: str | None = None) -> None:
        """Cancel the running job of this id, or every running job."""
        await self._scheduler.cancel_all(None if job_id is None else [job_id], "running", self.tenant)

    async def withdraw(self, job_ids: Sequence[str] | None = None) -> None:
        """Cancel jobs that wait: these, or all."""
        await self._scheduler.cancel_all(job_ids, "queued", self.tenant)

    async def warm(self, models: Sequence[str], pool: str | None) -> tuple[str, ...]:
        """Have replicas load models ahead; as `SchedulerClient.warm`. Errors: also for models that are not there."""
        for model in models:
            if not (recipes := warm_recipes(model)):
                raise InvalidSubmissionError(f"{_shown(model)} must be {WARM_FORM}")
            folder = recipes[0].folder
            names = (await self.choices([folder]))[folder]
            for name in recipes[0].files:
                if name not in names:
                    known = f"{folder}/{name}"
                    raise InvalidSubmissionError(f"there is no model {_shown(known)}{did_you_mean(name, names)}")
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
        await self._scheduler.forget(job_ids, self.tenant)

    def feed(self, client_id: str) -> str:
        """Return what a client's events are known by."""
        return feed_of(self.tenant, client_id)

    async def remove(self, job_ids: Sequence[str] | None = None) -> None:
        """Forget ended jobs, these or all, and delete their files."""
        await self._scheduler.remove(job_ids, self.tenant)

    async def delete(self, job_id: str) -> None:
        """Delete a job and its files. Errors: JobMissingError, JobUnfinishedError."""
        count, unfinished = await self._scheduler.remove([job_id], self.tenant) if is_job_id(job_id) else (0, ())
        if unfinished:
            raise JobUnfinishedError(f"job {job_id} has not ended; cancel it before it is deleted")
        if not count:
            raise JobMissingError(f"no job has the id {_shown(job_id)}")

    async def attach(self, client_id: str, token: str) -> Attached:
        """Let a socket read for a client; as `SchedulerClient.attach`."""
        return await self._scheduler.attach(self.feed(client_id), token)

    async def news(self, readers: Mapping[str, Reader], queue: int, timeout_s: float) -> News:
        """Return what clients have not been sent, by their feeds; as `SchedulerClient.news`."""
        return await self._scheduler.news(readers, queue, timeout_s)

    async def job(self, job_id: str) -> JobView | None:
        """Return a job without its credentials, or None."""
        view = await self._scheduler.job(job_id, self.tenant) if is_job_id(job_id) else None
        return None if view is None else without_secrets(view)

    async def standing(self, job_id: str) -> Standing | None:
        """Return how a job stands; as `SchedulerClient.standing`."""
        return await self._scheduler.standing(job_id, self.tenant) if is_job_id(job_id) else None

    @property
    def history_s(self) -> float | None:
        """How long after its end a job is kept; None where no time bounds it."""
        return self.limits.retention.bounds("history", self.tenant).age_s

    async def preview(self, job_id: str) -> tuple[str, bytes] | None:
        """Return the newest picture of a job that runs, a JPEG, and the node it is of; None if there is none."""
        event = await self._scheduler.preview(job_id, self.tenant) if is_job_id(job_id) else None
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
        view = await self._scheduler.queue(bounds, self.tenant)
        running, pending = (tuple(map(_listed, items)) for items in (view.running, view.pending))
        items = [*running, *pending]
        if len(items) < view.count.running + view.count.pending:
            refused("ingress.queue_items")
        if items and not items[-1].prompt:
            refused("ingress.queue_bytes")
        return replace(view, running=running, pending=pending)

    async def list_jobs(self, query: JobQuery, show: Show) -> tuple[dict[str, bytes], int]:
        """Return what is shown of the jobs that a query finds; as `ShownJobs.list`."""
        return await self._shown_jobs.list(replace(query, tenant=self.tenant), show)

    async def count(self) -> QueueCount:
        """Return how many jobs have not ended."""
        return await self._scheduler.count(self.tenant)

    async def events(self, job_id: str, after: int, timeout_s: float) -> JobEvents:
        """Return the job's events past the cursor, waiting for the first. Errors: JobMissingError."""
        if not is_job_id(job_id):
            raise JobMissingError(f"no job has the id {_shown(job_id)}")
        if found := await self._scheduler.events(job_id, after, min(timeout_s, self.limits.poll_s), self.tenant):
            return JobEvents(tuple(found), any(event.last for event in found))
        # Asked for only now, as a job is as large as its prompt. An ending since then is in the events.
        view = await self.job(job_id)
        if view is None:
            raise JobMissingError(f"no job has the id {_shown(job_id)}")
        if view.state not in ENDINGS:
            return JobEvents((), False)
        return JobEvents(tuple(await self._scheduler.events(job_id, after, 0.0, self.tenant)), True)

    async def cluster(self) -> ClusterView:
        """Return the cluster's hosts and replicas."""
        return await self._scheduler.cluster()

    async def story(self, job_id: str) -> Sequence[tuple[float, str]]:
        """Return what happened to an unfinished job lately; as `SchedulerClient.story`."""
        return await self._scheduler.story(job_id, self.tenant)

    async def specs(self) -> Mapping[str, NodeSpec]:
        """Return every node class some pool can run; of one that pools differ in, as the shared ones have it."""
        known, _ = await self._known()
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


def _read(body: Mapping[str, Any]) -> tuple[Submission, Sequence[str] | None]:
    """Return the body as a submission with its prompt unchecked, and the targets. Errors: InvalidSubmissionError."""
    wrong: list[str] = []

    def field(key: str, what: str, fits: Callable[[Any], bool], default: Any = None) -> Any:
        if key not in body:
            return default
        if not fits(body[key]):
            wrong.append(f"'{key}' must be {what}, not {_shown(body[key])}")
            return default
        return body[key]

    number = field("number", "a finite number", _is_finite)
    targets = field("partial_execution_targets", "a list of node ids", _is_id_list)
    job_id = field("prompt_id", "a UUID such as 550e8400-e29b-41d4-a716-446655440000", is_job_id)
    submission = Submission(
        job_id=job_id or str(uuid.uuid4()),
        prompt=field("prompt", "an object of nodes by id", _is_object, {}),
        outputs=(),
        client_id=field("client_id", "a string without NUL", _is_string),
        extra_data=field("extra_data", "an object", _is_object, {}),
        number=None if number is None else float(number),
        front=field("front", "true or false", lambda value: isinstance(value, bool), False),
        id_is_new=job_id is None,
    )
    strict = submission.extra_data.get("strict", False)
    if not isinstance(strict, bool):
        wrong.append(f"'strict' in 'extra_data' must be true or false, not {_shown(strict)}")
    for key in ("node_time_s", "job_time_s"):
        seconds = submission.extra_data.get(key, 1)
        if not _is_finite(seconds) or seconds <= 0:
            wrong.append(f"'{key}' in 'extra_data' must be a number of seconds above 0, not {_shown(seconds)}")
    deadline_s = submission.extra_data.get("deadline_s", 1)
    if not _is_finite(deadline_s) or not 0 < deadline_s <= LONGEST_DEADLINE_S:
        allowed = f"above 0 and at most {LONGEST_DEADLINE_S:.0f}"
        past = ", which has passed already" if _is_finite(deadline_s) and deadline_s <= 0 else ""
        wrong.append(
            f"'deadline_s' in 'extra_data' must be seconds from the submission on, {allowed}, "
            f"not {_shown(deadline_s)}{past}"
        )
    priority = submission.extra_data.get("priority", 0)
    if isinstance(priority, bool) or not isinstance(priority, int):
        wrong.append(f"'priority' in 'extra_data' must be a whole number, not {_shown(priority)}")
    if "prompt" not in body:
        wrong.append("'prompt' is missing: an object of nodes by id")
    wrong += [
        f"{_shown(key)} is not a key of a submission; allowed are {', '.join(KEYS)}" for key in body if key not in KEYS
    ]
    if wrong:
        raise InvalidSubmissionError("; ".join(wrong))
    return submission, targets


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_string(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def is_job_id(value: Any) -> bool:
    """Whether a value has the form of a job's id."""
    return isinstance(value, str) and _UUID.fullmatch(value) is not None


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond the range of a float
        return False


def _is_id_list(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(i, str) for i in value))


def _shown(value: Any) -> str:
    """Return a value as an error names it, short whatever its size."""
    if isinstance(value, Mapping | list):
        return "an object" if isinstance(value, Mapping) else "a list"
    try:
        text = repr(value) if isinstance(value, str) else json.dumps(value)
    except ValueError:  # an integer with more digits than Python prints
        return "a huge number"
    return text if len(text) <= 80 else f"{text[:77]}…"


def _prompt(graph: Graph, prompt: Mapping[str, Any]) -> dict[str, Any]:
    """Return the wire JSON of a validated graph: converted constants, and what else the nodes' objects held."""
    return {node_id: {**prompt[node_id], **node} for node_id, node in render(graph).items()}


def _listed(item: QueueItem) -> QueueItem:
    return item._replace(extra_data=without_credentials(item.extra_data)) if item.extra_data else item
