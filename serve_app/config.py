"""The typed configuration: what `configs/*.yaml` may say, and what each value means. Unknown keys are refused."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from math import floor
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field

from serve_app import log
from serve_app.api.crowd import BODIES, BODY_S, LISTENERS, PACK_STREAMS, Crowd
from serve_app.api.dialect import ROOT_DIALECT, Dialect
from serve_app.api.origin import LOOPBACK, Allowed
from serve_app.api.principal import KeyScope
from serve_app.api.token_rules import Algorithm, TokenRules
from serve_app.errors import ConfigError
from serve_app.graph.destination import SHARED
from serve_app.graph.plan import EVERY_CLASS, Pool
from serve_app.limits import EventLimits, ModelChangeLimits, Quotas, SizeLimits, WebhookLimits
from serve_app.recipe import WARM_FORM, warm_recipes
from serve_app.request_limits import COMMAND_BYTES, IDS, QUEUE_BYTES, QUEUE_ITEMS, Limits
from serve_app.scheduler.admission import AdmissionRules
from serve_app.store.location import Location
from serve_app.store.retention import Bounds, Kind, RetentionRules
from serve_app.store.store import Area
from serve_app.values import PreviewMethod

CELLS = {"cuda": 1_048_576, "cpu": 131_072}
"""What `latent_cells` of a pool is where it says nothing, by device."""
Dtype = Literal["auto", "fp32", "fp16", "bf16"]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A part of the configuration: immutable, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class IngressConfig(Section):
    """The HTTP replicas. They scale with the requests each has in hand."""

    min_replicas: Annotated[int, Field(ge=1)] = 1
    max_replicas: Annotated[int, Field(ge=1)] = 1
    ongoing_requests: Annotated[int, Field(ge=1)] = 200
    """Target concurrent requests per replica, long polls included; above it Serve adds one."""
    num_cpus: float = 0.0
    hosts: dict[str, str] = {}
    """As a pool's."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 20_000_000
    max_upload_bytes: Annotated[int, Field(ge=1024)] = 100 * 1024 * 1024
    """Size of an uploaded file."""
    max_bodies: Annotated[int, Field(ge=1)] = BODIES
    """Bodies that may be arriving at one replica at once; one more is answered 503."""
    body_s: Annotated[float, Field(gt=0)] = BODY_S
    """How long a body may take to arrive; then it is answered 408."""
    max_listeners: Annotated[int, Field(ge=1)] = LISTENERS
    """Websockets and event polls that one replica has at once; one more is answered 503, a handshake too."""
    max_pack_streams: Annotated[int, Field(ge=1)] = PACK_STREAMS
    """Long answers and websockets of node packs that one replica passes on at once."""
    max_command_bytes: Annotated[int, Field(ge=1024)] = COMMAND_BYTES
    """Size of any other body, such as settings, and of what a client says at once on a node pack's websocket."""
    max_ids: Annotated[int, Field(ge=1)] = IDS
    """Jobs that one request cancels or forgets."""
    queue_items: Annotated[int, Field(ge=1)] = QUEUE_ITEMS
    """Jobs that an answer to GET /queue names: all that run, then those that wait, the next to start first."""
    queue_bytes: Annotated[int, Field(ge=0)] = QUEUE_BYTES
    """Memory that the first of these take which come with their prompts; the others' prompts are empty."""
    root_dialect: Dialect = ROOT_DIALECT
    """Of the root's routes that the contract and ComfyUI both have: comfy lets every ComfyUI client use the root."""
    allowed_hosts: tuple[str, ...] = LOOPBACK
    """Names in a request's Host that are this server's, "*.example" for all below one; "*" for any, as behind a proxy.

    `serve-app up` takes any where it listens on more than this machine and the file says nothing.
    """
    allowed_origins: tuple[str, ...] = ()
    """Origins whose pages may use this server beside its own, as https://app.example; "*" for any."""

    @property
    def allowed(self) -> Allowed:
        """What the server's door goes by."""
        return Allowed(tuple(map(str.lower, self.allowed_hosts)), self.allowed_origins)


def _endpoint(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a URL such as https://store.example:9000")
    if "@" in parts.netloc:
        raise ValueError("must hold no credentials; they come from the environment or a role")
    return url


Endpoint = Annotated[str, pydantic.AfterValidator(_endpoint)]


class BucketConfig(Section):
    """A bucket of an S3-compatible store, or a part of one.

    Credentials are never here: they are AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of the environment, or a role.
    """

    bucket: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{1,254}$")]
    prefix: str = ""
    """What its keys begin with; the rest of the bucket is left alone."""
    endpoint: Endpoint | None = None
    """None is Amazon's own, or AWS_ENDPOINT_URL_S3 of the environment."""
    region: str | None = None
    """None is AWS_REGION's, or us-east-1."""
    path_style: bool = False
    """Whether the bucket is named in the path and not in the host, as most stores but Amazon's want it."""
    patience_s: Annotated[float, Field(ge=0, le=600)] = 30.0
    """How long a store that is away or busy is asked again."""
    timeout_s: Annotated[float, Field(gt=0, le=600)] = 30.0
    """How long one request may stay without an answer."""

    @property
    def location(self) -> Location:
        """The bucket as its client sees it."""
        return Location(**self.model_dump(include=set(BucketConfig.model_fields)))


class S3Config(BucketConfig):
    """Clients' files in a bucket."""

    kind: Literal["s3"]
    presigned_redirects: bool = False
    """Whether GET /view answers with a link to the store, so that files do not pass through the ingress."""
    public_endpoint: Endpoint | None = None
    """What such links name, where clients reach the store by another address than the servers."""
    link_s: Annotated[int, Field(ge=1, le=604_800)] = 300
    """How long such a link is good."""

    @property
    def location(self) -> Location:
        """The bucket as its client sees it."""
        return replace(super().location, public_endpoint=self.public_endpoint)


class VolumeConfig(Section):
    """Clients' files in input_dir, output_dir and temp_dir, which every host sees."""

    kind: Literal["volume"] = "volume"


def _by_url(given: Any) -> Any:
    """Return `s3://bucket/prefix` as the keys it stands for."""
    if not isinstance(given, str):
        return given
    bucket, _, prefix = given.removeprefix("s3://").partition("/")
    if not given.startswith("s3://"):
        raise ValueError("must be s3://BUCKET/PREFIX, or keys such as bucket and prefix")
    return {"bucket": bucket, "prefix": prefix}


def _http(url: str) -> str:
    return _endpoint(url).rstrip("/")


OWN_ARGUMENTS = frozenset(
    {"--listen", "--port", "--input-directory", "--output-directory", "--temp-directory", "--user-directory"}
    | {"--base-directory", "--database-url", "--max-upload-size", "--disable-auto-launch", "--auto-launch"}
    | {"--tls-keyfile", "--tls-certfile", "--multi-user", "--quick-test-for-ci"}
)
"""Arguments of ComfyUI's main.py that a replica gives itself, or that would keep it from reaching its process."""


def _free_arguments(arguments: tuple[str, ...]) -> tuple[str, ...]:
    if taken := sorted({a for a in arguments if a.partition("=")[0] in OWN_ARGUMENTS}):
        raise ValueError(f"{', '.join(taken)} must be left out: each replica sets ports and folders of its own")
    return arguments


class ComfyUIConfig(Section):
    """A ComfyUI that runs a pool's jobs: an installation, of which every replica starts a process, or a running one."""

    directory: Path | None = None
    """The installation, with main.py and custom_nodes; nothing in it is changed."""
    python: Path | None = None
    """Its Python. None takes venv/bin/python or .venv/bin/python of the directory."""
    arguments: Annotated[tuple[str, ...], pydantic.AfterValidator(_free_arguments)] = ()
    """More arguments of main.py, such as --fast or --reserve-vram."""
    url: Annotated[str, pydantic.AfterValidator(_http)] | None = None
    """A ComfyUI that runs already; files go to it and come from it over HTTP. Nobody else may queue there."""
    scratch_dir: Path | None = None
    """Where a replica makes the folders of its process, gone with it; None is the system's temporary directory."""
    start_s: Seconds = 600.0
    """How long a process may take until it answers; importing packs counts."""
    routes: bool = True
    """Whether a replica answers for HTTP paths that this server has no route for, as its packs' pages need.

    Any client may then ask for them: leave it off where a pack's routes install things.
    """
    keep_bytes: Annotated[int, Field(ge=0)] = 4 * 1024**3
    """Files that its process has made and that may stay with it, for its own cache to show again."""

    @pydantic.model_validator(mode="after")
    def _is_one_of_two(self) -> ComfyUIConfig:
        if (self.directory is None) == (self.url is None):
            raise ValueError("comfyui must have either directory or url")
        if self.url is not None and (self.python is not None or self.arguments):
            raise ValueError("python and arguments go with directory; a ComfyUI with a url runs already")
        return self

    def absolute(self) -> ComfyUIConfig:
        """Return it with every path absolute; a link stays one, for a virtual environment's Python is found by it."""
        paths = {"directory": self.directory, "python": self.python, "scratch_dir": self.scratch_dir}
        update = {name: path.expanduser().absolute() for name, path in paths.items() if path is not None}
        return self.model_copy(update=update)


def _warmable(models: tuple[str, ...]) -> tuple[str, ...]:
    if wrong := [model for model in models if not warm_recipes(model)]:
        raise ValueError(f"{', '.join(wrong)} must be {WARM_FORM}")
    return models


class KeepConfig(Section):
    """How much is kept of a kind; what is left out sets no bound."""

    age_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    count: Annotated[int, Field(ge=0)] | None = None
    bytes: Annotated[int, Field(ge=0)] | None = None

    @property
    def bounds(self) -> Bounds:
        """The same, as the database and the store go by it."""
        return Bounds(self.age_s, self.count, self.bytes)


class KeptConfig(Section):
    """How much is kept for one tenant, or for each."""

    history: KeepConfig | None = None
    """Jobs that have ended; bytes are those of their texts in the database. Their files stay."""
    outputs: KeepConfig | None = None
    """Whatever is in output_dir, or that area of the bucket."""
    previews: KeepConfig | None = None
    """Pictures in temp_dir that nodes have shown; also removed after temp_age_s."""
    uploads: KeepConfig | None = None
    """Whatever is in input_dir but uploads of Comfy API v2, which expire as their clients say."""
    temp: KeepConfig | None = None
    """Whatever else is in temp_dir."""

    def by_kind(self) -> dict[Kind, Bounds]:
        """The bounds that are given."""
        given: dict[Kind, KeepConfig | None] = {
            "history": self.history,
            "outputs": self.outputs,
            "previews": self.previews,
            "uploads": self.uploads,
            "temp": self.temp,
        }
        return {kind: keep.bounds for kind, keep in given.items() if keep is not None}


class RetentionConfig(KeptConfig):
    """How much is kept. The bounds of a kind are each tenant's, but for those with bounds of their own for it."""

    tenants: dict[str, KeptConfig] = {}
    every_s: Seconds = 300.0
    """How often it is looked whether something must go."""

    @property
    def rules(self) -> RetentionRules:
        """The same, as the scheduler goes by it."""
        tenants = {tenant: kept.by_kind() for tenant, kept in self.tenants.items()}
        return RetentionRules(self.by_kind(), tenants, self.every_s)


class JwtConfig(Section):
    """Tokens of an identity provider, beside the keys that are made here."""

    issuer: Annotated[str, Field(min_length=1)]
    audience: Annotated[str, Field(min_length=1)]
    jwks: Annotated[str, Field(min_length=1)]
    """The provider's public keys: an https:// URL, or a file."""
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = ("RS256", "ES256", "EdDSA")
    tenant_claim: str = "tenant"
    """What names the tenant; a token without a tenant's name in it is refused."""
    scopes_claim: str = "scope"
    """What lists scopes or roles; a token without it has submit and read."""
    roles: dict[str, tuple[KeyScope, ...]] = {}
    """Scopes of each role. A role that is not here and no scope itself allows nothing."""

    @property
    def rules(self) -> TokenRules:
        """Which tokens hold."""
        return TokenRules(**self.model_dump())


class TenantsConfig(Section):
    """Who may come in, and that each has only what is its own. An empty section turns it on, with keys alone."""

    jwt: JwtConfig | None = None
    shared_packs: bool = False
    """Whether tenants may use what does not keep them apart: routes of node packs, and pools that are a ComfyUI."""
    shared_results: bool = False
    """Whether a tenant's job may use what another tenant's has computed, where that names and shows nothing of it."""
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    """Networks of proxies before this server whose X-Forwarded-For the audit log believes; else it has who connects."""
    audit_days: Annotated[float, Field(gt=0)] = 90.0
    """How long the audit log is kept."""


class PoolConfig(Section):
    """A set of equal replicas: which node classes they run, what they get of the hardware, how many there are."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,30}$")]
    accepts: tuple[str, ...] = EVERY_CLASS
    """Class-name patterns of the nodes it may run."""
    comfyui: ComfyUIConfig | None = None
    """The ComfyUI that its replicas are: it takes whole workflows, one at a time, of all classes that it has."""
    prefers: tuple[str, ...] = ()
    """Class-name patterns of workflows that go to a ComfyUI even where other pools have all of their classes."""
    runtime: bool = True
    """Whether its replicas hold models; False for a CPU worker."""
    min_replicas: Annotated[int, Field(ge=0)] = 1
    max_replicas: Annotated[int, Field(ge=1)] = 1
    tasks_per_replica: Annotated[int, Field(ge=1)] = 16
    """Tasks one replica runs at once: what can share a forward."""
    num_cpus: Annotated[float, Field(ge=0)] = 1.0
    num_gpus: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs a replica; a fraction shares a card and bounds the memory the replica may take of it to the same share.

    auto is one for a pool that holds models, if the cluster has one as the application is deployed; pools share what
    there is. One that is asked for by a number and is not there is an error.
    """
    device: Literal["auto", "cpu"] = "auto"
    """Where its models are: auto is on its GPU, if it has one; cpu is on the CPU, whatever num_gpus reserves."""
    resources: dict[str, float] = {}
    hosts: dict[str, str] = {}
    """Labels of the hosts that may run it, as Ray's label_selector: {role: gpu}, or {role: "!gpu"} for any other."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads for tensor work; 0 is every core for models on a CPU, num_cpus for all else."""
    dtype: Dtype = "auto"
    """Of the backbone and text encoder: auto is fp32 on a CPU; on a GPU fp16 or bf16 by family, and fp32 for CLIP."""
    vae_dtype: Dtype = "auto"
    """auto is fp32 on a CPU, bf16 on a GPU that has it."""
    fast: bool = False
    """On a GPU, products of fp16 are summed in fp16: faster on GeForce cards, and less exact."""
    fp8_matmul: bool = False
    """On a GPU of compute capability 8.9 or above, backbones' layers kept in fp8 multiply in it: other pictures."""
    weights_bytes: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Resident weights a replica keeps before it evicts the least recently used.

    auto is what its share of the card leaves beside its context, a reserve and its forwards; on a CPU half of what its
    process may use. More than the card has room for is an error.
    """
    host_bytes: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Pinned host memory that a replica keeps weights in which were evicted from its GPU; they come back by copies.

    auto is a quarter of `memory_bytes`, or where that is not said of its part of the host, by its share of the host's
    GPUs; 0 has them read from their files again. On a CPU there is none.
    """
    results_bytes: Annotated[int, Field(ge=0)] = 1024**3
    """Node results a replica keeps, likewise."""
    max_cells: Annotated[int, Field(ge=1)] = 131072
    """Latent cells in one forward, 64 pixels of an image each: 32 rows of 512×512, or 8 of 1024×1024.

    In half precision a cell takes about 16 KiB while SD 1.5 runs and 10 KiB with SDXL, so this much 2 GiB beside the
    weights; in single precision twice that. A job's evaluation has two rows an image, one without a negative. Where the
    device runs out of memory nevertheless, a replica goes on with less.
    """
    latent_cells: Annotated[int, Field(ge=0)] = 0
    """Cells of the latents that one sampler works on, its whole batch; one decoded or encoded image is held to it too.

    An image has a cell for 8×8 pixels. 0 is 1,048,576 on a GPU, which is 64 images of 1024×1024, and 131,072 on a CPU.
    """
    memory_bytes: Annotated[int, Field(ge=0)] = 0
    """Memory of its own that a replica's process may use before it is ended and replaced; 0 is 80 % of what there is.

    Leave room between this and what the host or container allows: it is looked at a few times a second. In a pool
    without GPU one that is set also makes a single allocation fail that goes far beyond it.
    """
    warm: Annotated[tuple[str, ...], pydantic.AfterValidator(_warmable)] = ()
    """Models that a replica loads as it starts, as checkpoints/sd15.safetensors; see WARM_FORM."""
    hang_s: Annotated[float, Field(gt=0)] = 10.0
    """How long one thing may block a replica's event loop before the process is ended and replaced.

    What holds every thread up, such as importing a large extension, does not count; `silence_s` bounds that.
    """
    node_time_s: Seconds | None = 1800.0
    """How long one call of a node may take that needs no models. Its job then ends in error."""
    runtime_node_time_s: Seconds | None = None
    """How long one call of a node may take that needs models, such as a sampler."""
    forward_time_s: Seconds = 1800.0
    """How long one forward of a model may take, or loading one, before the replica's process is ended and replaced.

    What it bounds is a computation that never returns, on a broken device say; nothing else can stop one.
    """
    stop_s: Seconds = 10.0
    """How long a node may go on that was cancelled or took too long, before its process is ended and replaced."""
    idle_s: Annotated[float, Field(ge=0)] = 60.0
    """How long a replica beyond min_replicas stays without work."""
    drain_s: Seconds = 30.0
    """Within what time a pool's replicas should have done what waits for them; more are started for what takes longer.

    By how long the steps of each model have taken before; a second each until that is known.
    """

    @pydantic.model_validator(mode="before")
    @classmethod
    def _renamed(cls, given: Any) -> Any:
        if isinstance(given, dict) and "max_rows" in given:
            raise ValueError("max_rows is max_cells now: latent cells instead of rows; 32 rows of 512×512 are 131072")
        if isinstance(given, dict) and "batching" in given:
            raise ValueError("batching is no key any more; `strict: true` of the whole makes jobs share no forward")
        return given

    @property
    def gpus(self) -> float:
        """GPUs a replica; none for auto, before `AppConfig.on` says what that is."""
        return 0.0 if self.num_gpus == "auto" else self.num_gpus

    @property
    def memory_fraction(self) -> float | None:
        """The share of a card's memory that one replica may take; None for all of it."""
        return self.gpus if 0 < self.gpus < 1 else None

    @property
    def pool(self) -> Pool:
        """The pool as the planner sees it."""
        return Pool(self.name, self.runtime, self.accepts, self.comfyui is not None, self.prefers)

    def cells(self, *, cuda: bool) -> int:
        """Return its `latent_cells` on a device."""
        return self.latent_cells or CELLS["cuda" if cuda else "cpu"]

    @property
    def takes_a_gpu(self) -> bool:
        """Whether a GPU would be of use to it: it has models here, on no CPU."""
        elsewhere = self.comfyui is not None and self.comfyui.url is not None
        return self.runtime and self.device != "cpu" and not elsewhere

    @property
    def slots(self) -> int:
        """Tasks one replica runs at once; a ComfyUI has one queue."""
        return self.tasks_per_replica if self.comfyui is None else 1

    @pydantic.model_validator(mode="after")
    def _goes_with_comfyui(self) -> PoolConfig:
        if self.comfyui is None:
            if self.warm and not self.runtime:
                raise ValueError(f"pool {self.name}: warm is for a pool whose replicas hold models")
            if self.prefers:
                raise ValueError(f"pool {self.name}: prefers is for a pool with comfyui")
            return self
        if self.warm:
            raise ValueError(f"pool {self.name}: warm is not for a pool with comfyui, which loads its models itself")
        if self.accepts != EVERY_CLASS:
            raise ValueError(f"pool {self.name}: accepts is not for a pool with comfyui, whose classes are its own")
        if self.comfyui.url is not None and self.max_replicas != 1:
            raise ValueError(f"pool {self.name}: a ComfyUI with a url is one replica, not {self.max_replicas}")
        return self


class AppConfig(Section):
    """The whole application's configuration: the arguments of `serve_app.deployments.build:build`."""

    models: Annotated[BucketConfig | None, pydantic.BeforeValidator(_by_url)] = None
    """Model files in a bucket, as keys or as s3://BUCKET/PREFIX; that is then found where an s3 store is."""
    models_dir: Path = Path("models")
    """Model files; with `models`, where each host keeps its copies."""
    models_cache_bytes: Annotated[int, Field(ge=0)] = 0
    """Copies beyond this go, least recently used first; 0 keeps them all."""
    model_changes: ModelChangeLimits | None = None
    """Whether admins may upload and delete model files over HTTP; an empty section lets them, None nobody."""
    store: Annotated[VolumeConfig | S3Config, Field(discriminator="kind")] = VolumeConfig()
    """Where clients' files are."""
    input_dir: Path = Path("input")
    output_dir: Path = Path("output")
    temp_dir: Path = Path("temp")
    temp_age_s: Annotated[float, Field(ge=60)] = 86_400.0
    """How old previews in temp_dir get; a server that starts removes all that no unfinished job has shown."""
    user_dir: Path = Path("user")
    """Settings and files of the web page's users."""
    preview_method: PreviewMethod = "none"
    """Of jobs that name none as `extra_data.preview_method`. Some clients take previews for results."""
    multi_user: bool = False
    """Whether the web page asks who one is, to keep settings apart. It is no security: anyone may be any user."""
    tenants: TenantsConfig | None = None
    """None lets everyone in who reaches the port, and all have everything together."""
    database_url: str = "sqlite:///state/jobs.sqlite"
    max_queue: Annotated[int, Field(ge=1)] = 1000
    """Jobs that may wait; one more is answered 503."""
    client_share: Annotated[float, Field(gt=0, le=1)] = 0.8
    """How much of max_queue the jobs of one client may take; those that name no client_id count as one client's."""
    client_priority: bool = True
    """Whether a submission may say `front`, `number` or a priority; if not, it is answered 400: for open servers."""
    max_priority: Annotated[int, Field(ge=0, le=1_000_000)] = 100
    """How far from 0 the `extra_data.priority` of a submission may be; jobs of a higher one go before all others."""
    max_attempts: Annotated[int, Field(ge=1)] = 3
    """Replicas a job may lose while it alone runs on them, before it is given up."""
    silence_s: Annotated[float, Field(ge=5)] = 20.0
    """How long a replica may say nothing before its process is ended and its tasks are given to others."""
    job_time_s: Seconds | None = None
    """How long a job may run, from its start; then it ends in error."""
    deadline_s: Seconds | None = None
    """Within what time of its submission a job must have ended, waiting included; then it ends in error."""
    cache: Annotated[str, Field(pattern=r"^(classic|none|lru:[0-9]{1,9})$")] = "classic"
    """Node results that later jobs may use: as many as results_bytes holds, none, or lru:N at most N a replica too."""
    strict: bool = False
    """Whether jobs that do not say share no computation with others, so that equal ones are equal to the bit."""
    custom_nodes_dir: Path | None = None
    """The folder of node packs; their code runs in workers and replicas. None loads none."""
    pack_import_s: Seconds = 600.0
    """How long one pack may take to be imported; then the process that imports it ends, saying which it was."""
    logs: log.Form = "text"
    """What log lines look like."""
    retention: RetentionConfig = RetentionConfig()
    """What is let go of jobs and files; nothing, unless it says so."""
    limits: SizeLimits = SizeLimits()
    events: EventLimits = EventLimits()
    webhooks: WebhookLimits = WebhookLimits()
    quotas: Quotas = Quotas()
    """What each tenant may have; see Quota."""
    ingress: IngressConfig = IngressConfig()
    pools: Annotated[tuple[PoolConfig, ...], Field(min_length=1)] = (PoolConfig(name="gpu"),)

    @pydantic.model_validator(mode="after")
    def _names_are_unique(self) -> AppConfig:
        names = [pool.name for pool in self.pools]
        if SHARED in names:
            raise ValueError(f"a pool cannot be named {SHARED}: that stands for all pools that share workflows")
        if len(set(names)) != len(names):
            raise ValueError(f"pools must have different names, not {', '.join(names)}")
        for pool in self.pools:
            if pool.min_replicas > pool.max_replicas:
                raise ValueError(f"pool {pool.name}: min_replicas {pool.min_replicas} exceeds {pool.max_replicas}")
            if pool.hang_s >= self.silence_s:
                raise ValueError(
                    f"pool {pool.name}: hang_s {pool.hang_s:g} must be less than silence_s {self.silence_s:g}"
                )
        return self

    @property
    def admission(self) -> AdmissionRules:
        """Who may submit what."""
        return AdmissionRules(
            self.max_queue,
            self.client_share,
            self.client_priority,
            max_priority=self.max_priority,
            share_results=self.cache != "none",
            strict=self.strict,
            quotas=self.quotas,
            across_tenants=self.tenants is not None and self.tenants.shared_results,
            gpus={pool.name: pool.gpus or float(pool.runtime) for pool in self.pools},
        )

    @property
    def latent_cells(self) -> int | None:
        """The most cells that a sampler may work on in some pool that shares workflows; None where there is none."""
        pools = (pool for pool in self.pools if pool.runtime and pool.comfyui is None)
        return max((pool.cells(cuda=pool.gpus > 0 and pool.device != "cpu") for pool in pools), default=None)

    @property
    def crowd(self) -> Crowd:
        """The rooms of one ingress replica."""
        ingress, models = self.ingress, self.model_changes or ModelChangeLimits()
        return Crowd(
            ingress.max_bodies, ingress.max_listeners, ingress.body_s, ingress.max_pack_streams, models.at_once
        )

    @property
    def request_limits(self) -> Limits:
        """How much one request may hold."""
        return Limits(
            body_bytes=self.ingress.max_body_bytes,
            upload_bytes=self.ingress.max_upload_bytes,
            command_bytes=self.ingress.max_command_bytes,
            ids=self.ingress.max_ids,
            sizes=self.limits,
            latent_cells=self.latent_cells,
            queue_items=self.ingress.queue_items,
            queue_bytes=self.ingress.queue_bytes,
            webhooks=self.webhooks,
            retention=self.retention.rules,
            quotas=self.quotas,
            model_changes=self.model_changes,
        )

    @property
    def results_entries(self) -> int | None:
        """How many results a replica keeps at most; None for as many as their bytes allow."""
        kind, _, count = self.cache.partition(":")
        return int(count) if kind == "lru" else None

    @property
    def models_location(self) -> Location | None:
        """The bucket of the model files, if they are in one; it is with the store's unless it says where."""
        if self.models is None or self.models.endpoint is not None or not isinstance(self.store, S3Config):
            return None if self.models is None else self.models.location
        store = self.store
        return replace(self.models.location, endpoint=store.endpoint, region=store.region, path_style=store.path_style)

    @property
    def directories(self) -> dict[Area, Path]:
        """The three directories clients know."""
        return {"input": self.input_dir, "output": self.output_dir, "temp": self.temp_dir}

    def on(self, gpus: float) -> AppConfig:
        """Return it for a cluster of so many GPUs, which say what `num_gpus: auto` of its pools is."""
        auto = [pool for pool in self.pools if pool.num_gpus == "auto" and pool.takes_a_gpu]
        left = max(0.0, gpus - sum(pool.gpus for pool in self.pools))
        # Ray's shares have four digits.
        each = min(1.0, floor(left / max(1, len(auto)) * 10_000) / 10_000)
        given = {pool.name: each for pool in auto}
        pools = (pool.model_copy(update={"num_gpus": given.get(pool.name, pool.gpus)}) for pool in self.pools)
        return self.model_copy(update={"pools": tuple(pools)})

    def resolved(self) -> AppConfig:
        """Return it with every path absolute and every directory made, the database's among them."""
        update: dict[str, Any] = {}
        for name in ("models_dir", "input_dir", "output_dir", "temp_dir", "user_dir"):
            path = getattr(self, name).expanduser().absolute()
            # A host whose clients' files are in a bucket may have no disk to make their directories on.
            remote = isinstance(self.store, S3Config) and name in ("input_dir", "output_dir", "temp_dir")
            if name != "models_dir" and not remote:
                path.mkdir(parents=True, exist_ok=True)
            update[name] = path
        update["pools"] = tuple(
            pool if pool.comfyui is None else pool.model_copy(update={"comfyui": pool.comfyui.absolute()})
            for pool in self.pools
        )
        if self.custom_nodes_dir is not None:
            update["custom_nodes_dir"] = self.custom_nodes_dir.expanduser().absolute()
        scheme, separator, path = self.database_url.partition("sqlite:///")
        if separator and not scheme and path and path != ":memory:":
            file = Path(path).expanduser().absolute()
            file.parent.mkdir(parents=True, exist_ok=True)
            update["database_url"] = f"sqlite:///{file}"
        return self.model_copy(update=update)


def parse(arguments: Any, where: str) -> AppConfig:
    """Check a mapping and return the configuration. Errors: ConfigError naming each wrong key, as `where`: key."""
    try:
        return AppConfig.model_validate(arguments)
    except pydantic.ValidationError as error:
        wrong = (f"{'.'.join(map(str, e['loc'])) or 'configuration'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{where}: " + "; ".join(wrong)) from error


def load(path: Path) -> AppConfig:
    """Read the application's arguments out of a Serve config file. Errors: ConfigError."""
    try:
        document = yaml.safe_load(path.read_text())
        (application,) = document["applications"]
        arguments = application.get("args") or {}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: not a Serve config file with one application: {error}") from error
    return parse(arguments, str(path))
