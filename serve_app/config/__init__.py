"""The typed configuration: the keys of `configs/*.yaml` and what they mean. Unknown keys are refused.

The root is here, each section in a file of its own.
"""

from __future__ import annotations

from math import floor
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import Field

from serve_app import log
from serve_app.config.ingress import IngressConfig
from serve_app.config.limits import (
    BackoffRules,
    EventLimits,
    LatentBounds,
    ModelChangeLimits,
    SizeLimits,
    WebhookLimits,
)
from serve_app.config.mistakes import mistakes
from serve_app.config.pool import NOT_STRICT, SHARED, PoolConfig
from serve_app.config.preemption import PreemptionConfig
from serve_app.config.quotas import Quotas
from serve_app.config.results import ResultsConfig
from serve_app.config.resume import ResumeConfig
from serve_app.config.retention import RetentionConfig
from serve_app.config.section import Seconds, Section
from serve_app.config.storage import NamedBucket, S3Config, StoreConfig, VolumeConfig
from serve_app.config.tenants import TenantsConfig
from serve_app.config.traces import TracesConfig
from serve_app.errors import ConfigError
from serve_app.values import PreviewMethod

LAST_PORT = 65_535


def _database(url: str) -> str:
    if not url.startswith(("sqlite:", "postgresql:", "postgresql+psycopg:", "postgres:")):
        # A password may be in it.
        raise ValueError("must be sqlite:///FILE or postgresql://USER@HOST/NAME")
    return url


class AppConfig(Section):
    """The application's configuration: the arguments of `serve_app.deployments.build:build`."""

    models: NamedBucket | None = None
    """Model files in a bucket, as keys or as s3://BUCKET/PREFIX; the latter uses the endpoint of an s3 store."""
    models_dir: Path = Path("models")
    """Model files; with `models`, where each host keeps its copies."""
    extra_model_paths: tuple[Path, ...] = ()
    """Files in the form of ComfyUI's extra_model_paths.yaml, which name further directories of models; every host reads
    them. Not with `models`.
    """
    models_cache_bytes: Annotated[int, Field(ge=0)] = 0
    """Limit of the copies, evicted least recently used first; 0 keeps them all."""
    model_changes: ModelChangeLimits | None = None
    """Whether admins may upload and delete model files over HTTP: an empty section allows it, None does not."""
    store: StoreConfig = VolumeConfig()
    """Where clients' files are."""
    input_dir: Path = Path("input")
    output_dir: Path = Path("output")
    temp_dir: Path = Path("temp")
    work_dir: Path | None = None
    """Files of the server's own that may be lost: states of runs, and results of nodes. None is `work` beside temp_dir.
    """
    temp_age_s: Annotated[float, Field(ge=60)] = 86_400.0
    """How old previews in temp_dir get; without `results` a server that starts removes all but those of
    unfinished jobs.
    """
    user_dir: Path = Path("user")
    """Settings and files of the web page's users."""
    preview_method: PreviewMethod = "none"
    """The default of `extra_data.preview_method`. Some clients take previews for results."""
    multi_user: bool = False
    """Whether the web page asks for a user, to separate settings. It is no security: anyone may be any user."""
    tenants: TenantsConfig | None = None
    """None lets every client in, and all share all jobs and files."""
    database_url: Annotated[str, pydantic.AfterValidator(_database)] = "sqlite:///state/jobs.sqlite"
    database_statement_s: Seconds = 30.0
    """How long PostgreSQL may take to answer one statement; then it is retried over another connection."""
    max_queue: Annotated[int, Field(ge=1)] = 1000
    """Jobs that may wait; one more is answered 503."""
    client_share: Annotated[float, Field(gt=0, le=1)] = 0.8
    """How much of max_queue the jobs of one client may take; those that name no client_id count as one client's."""
    client_priority: bool = True
    """Whether a submission may have `front`, `number` or a priority; if not, it is answered 400: for open servers."""
    max_priority: Annotated[int, Field(ge=0, le=1_000_000)] = 100
    """How far from 0 the `extra_data.priority` of a submission may be; jobs of a higher one go before all others."""
    max_attempts: Annotated[int, Field(ge=1)] = 3
    """Replicas a job may lose while it alone runs on them, before it is given up."""
    silence_s: Annotated[float, Field(ge=5)] = 20.0
    """How long a replica may be silent before its process is ended and its tasks are given to others."""
    job_time_s: Seconds | None = None
    """How long a job may run, from its start; then it ends in error."""
    deadline_s: Seconds | None = None
    """Within what time of its submission a job must have ended, waiting included; then it ends in error."""
    cache: Annotated[str, Field(pattern=r"^(classic|none|lru:[0-9]{1,9})$")] = "classic"
    """Node results that later jobs may use: within results_bytes, none, or lru:N for at most N per replica too."""
    strict: bool = False
    """The default of `extra_data.strict`: share no computation with other jobs, so that equal jobs are equal to the
    bit.
    """
    custom_nodes_dir: Path | None = None
    """The folder of node packs; their code runs in workers and replicas. None loads none."""
    pack_import_s: Seconds = 600.0
    """How long one pack may take to be imported; then the process that imports it ends, saying which it was."""
    logs: log.Form = "text"
    """The format of log lines."""
    log_level: log.Level = "info"
    """The least level of log lines."""
    traces: TracesConfig | None = None
    """Where traces of jobs are sent; None makes none."""
    retention: RetentionConfig = RetentionConfig()
    """Which jobs and files are deleted; none by default."""
    resume: ResumeConfig | None = ResumeConfig()
    """Which sampler runs go on where they stopped if their replica is lost; None: all start again."""
    results: ResultsConfig | None = ResultsConfig()
    """Which results of nodes outlive a restart; None, or `cache: none`: none does."""
    preemption: PreemptionConfig = PreemptionConfig()
    """How replicas learn that their machine will be taken away."""
    limits: SizeLimits = SizeLimits()
    events: EventLimits = EventLimits()
    webhooks: WebhookLimits = WebhookLimits()
    backoff: BackoffRules = BackoffRules()
    """How long jobs of an owner whose job ended a replica wait."""
    quotas: Quotas = Quotas()
    """The quotas of each tenant; see Quota."""
    ingress: IngressConfig = IngressConfig()
    pools: Annotated[tuple[PoolConfig, ...], Field(min_length=1)] = (PoolConfig(name="gpu"),)

    @pydantic.model_validator(mode="after")
    def _models_have_one_place(self) -> AppConfig:
        if self.models is not None and self.extra_model_paths:
            raise ValueError("extra_model_paths names directories, and the model files are in a bucket (models)")
        return self

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
            if self.strict and (keys := ", ".join(sorted(pool.optimizations.keys() & NOT_STRICT))):
                raise ValueError(f"strict is true, and pool {pool.name} has {keys}; give one or the other")
            if pool.hang_s >= self.silence_s:
                raise ValueError(
                    f"pool {pool.name}: hang_s {pool.hang_s:g} must be less than silence_s {self.silence_s:g}"
                )
        return self

    @property
    def latents(self) -> LatentBounds | None:
        """The largest bounds of a sampler's latents in any pool that shares workflows; None without one."""
        pools = (pool for pool in self.pools if pool.runtime and pool.comfyui is None)
        bounds = [pool.latents(cuda=pool.gpus > 0 and pool.device != "cpu") for pool in pools]
        return LatentBounds(max(b.cells for b in bounds), max(b.pairs for b in bounds)) if bounds else None

    @property
    def results_entries(self) -> int | None:
        """How many results a replica keeps at most; None for as many as their bytes allow."""
        kind, _, count = self.cache.partition(":")
        return int(count) if kind == "lru" else None

    @property
    def stored_results(self) -> ResultsConfig | None:
        """Which results of nodes outlive a restart; None: none does."""
        return None if self.cache == "none" else self.results

    @property
    def directories(self) -> dict[Literal["input", "output", "temp", "work"], Path]:
        """The directories of the areas: the three that clients know, and the server's own."""
        work = self.temp_dir.with_name("work") if self.work_dir is None else self.work_dir
        return {"input": self.input_dir, "output": self.output_dir, "temp": self.temp_dir, "work": work}

    def on(self, gpus: float) -> AppConfig:
        """Return the configuration for a cluster with this many GPUs, which decides `num_gpus: auto` of its pools.

        Errors: ConfigError if it has some, and fewer than pools with `devices_per_replica` need.
        """
        auto = [pool for pool in self.pools if pool.num_gpus == "auto" and pool.takes_a_gpu]
        given = {pool.name: 1.0 for pool in auto if gpus and pool.devices > 1}
        left = gpus - sum(given.get(pool.name, pool.gpus) * pool.devices for pool in self.pools)
        if given and left < 0:
            [first, *_] = (pool for pool in auto if pool.name in given)
            raise ConfigError(
                f"pool {first.name}: devices_per_replica is {first.devices}, and the cluster has {gpus:g} "
                f"GPUs, {-left:g} fewer than its pools need; give less, or `device: cpu`"
            )
        alone = [pool.name for pool in auto if pool.name not in given]
        # Ray's shares have four digits.
        each = min(1.0, floor(max(0.0, left) / max(1, len(alone)) * 10_000) / 10_000)
        given |= dict.fromkeys(alone, each)
        pools = (pool.model_copy(update={"num_gpus": given.get(pool.name, pool.gpus)}) for pool in self.pools)
        return self.model_copy(update={"pools": tuple(pools)})

    def resolved(self, *, make: bool = True) -> AppConfig:
        """Return the configuration with absolute paths, and make every directory, the database's among them.

        make: False makes none. Errors: ConfigError for one that cannot be made.
        """
        update: dict[str, Any] = {}
        for name in ("models_dir", "input_dir", "output_dir", "temp_dir", "user_dir"):
            path = getattr(self, name).expanduser().absolute()
            # A host whose clients' files are in a bucket may have no disk to make their directories on.
            remote = isinstance(self.store, S3Config) and name in ("input_dir", "output_dir", "temp_dir")
            if make and name != "models_dir" and not remote:
                _make(name, path)
            update[name] = path
        if self.work_dir is not None:
            update["work_dir"] = self.work_dir.expanduser().absolute()
        update["pools"] = tuple(
            pool if pool.comfyui is None else pool.model_copy(update={"comfyui": pool.comfyui.absolute()})
            for pool in self.pools
        )
        update["extra_model_paths"] = tuple(path.expanduser().absolute() for path in self.extra_model_paths)
        if self.custom_nodes_dir is not None:
            update["custom_nodes_dir"] = self.custom_nodes_dir.expanduser().absolute()
        scheme, separator, path = self.database_url.partition("sqlite:///")
        if separator and not scheme and path and path != ":memory:":
            file = Path(path).expanduser().absolute()
            if make:
                _make("database_url", file.parent)
            update["database_url"] = f"sqlite:///{file}"
        return self.model_copy(update=update)


def _make(key: str, folder: Path) -> None:
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigError(f"{key}: {folder} is a file; give a folder") from None
    except OSError as error:
        raise ConfigError(f"{key}: the folder {folder} cannot be made: {error.strerror}") from error


def parse(arguments: Any, where: str) -> AppConfig:
    """Check a mapping and return the configuration. Errors: ConfigError naming each wrong key, as `where`: key."""
    try:
        return AppConfig.model_validate(arguments)
    except pydantic.ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(mistakes(AppConfig, error))) from error


def load(path: Path) -> AppConfig:
    """Read the application's arguments out of a Serve config file. Errors: ConfigError."""
    try:
        (application,) = _document(path)["applications"]
        arguments = application.get("args") or {}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: not a Serve config file with one application: {error}") from error
    return parse(arguments, str(path))


def port_of(path: Path) -> int | None:
    """Return `http_options.port` of a Serve config file, None if it names none. Errors: ConfigError."""
    options = _document(path).get("http_options") or {}
    port = options.get("port") if isinstance(options, dict) else None
    if port is not None and (not isinstance(port, int) or isinstance(port, bool) or not 0 <= port <= LAST_PORT):
        raise ConfigError(f"{path}: http_options.port must be a whole number from 0 to {LAST_PORT}, not {port!r}")
    return port


def _document(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path} is no YAML: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: not a Serve config file: it has no `applications`")
    return document
