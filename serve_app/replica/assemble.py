"""Builds a replica from its parts: nodes, models, engine, store. Imports torch, which only replicas do; no Ray."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import serve_app
from serve_app import log
from serve_app.config import AppConfig
from serve_app.config.pool import OPTIMIZATIONS, PoolConfig
from serve_app.engine.memory import CardMemory, Memory
from serve_app.engine.timeline import timeline_of
from serve_app.errors import ConfigError
from serve_app.execution.stored_results import StoredResults
from serve_app.execution.time_limit import NodeLimits
from serve_app.graph.plan import Pool, takes_pack
from serve_app.models.kernels.cuda_graphs import replays_of
from serve_app.models.weights.dtypes import dtype_of
from serve_app.models.weights.memory_plan import MB, card_share, host_weights_bytes, offload_bytes
from serve_app.nodes.registry import BUILTIN, specs
from serve_app.packs.image_files import limit_image_files
from serve_app.packs.loading import Packs, load_packs
from serve_app.packs.server import PromptServer
from serve_app.recipe.layers import EasyCache
from serve_app.replica import collector
from serve_app.replica.files import extra_paths, fingerprints, open_catalog, open_store
from serve_app.replica.gpu import gpu_of
from serve_app.replica.host import gpu_count, host_stats, memory_bytes, own_limit
from serve_app.replica.models import Models
from serve_app.replica.runner import Runner
from serve_app.replica.transfer import Transfer
from serve_app.replica.watchdog import exit_unless_done_within
from serve_app.scheduler.protocol.messages import ReplicaInfo, SchedulerForReplicas
from serve_app.store.files.store import WholeStore
from serve_app.store.models.catalog import Catalog
from serve_app.store.work.node_results import NodeResultFiles

if TYPE_CHECKING:
    from serve_app.models.ranks.leader import Leader
    from serve_app.models.weights.sharded_blocks import WeightRanks
    from serve_app.models.weights.weights import Weights

_log = log.get("replica")

FP8_CAPABILITY = (8, 9)
"""The lowest compute capability with fp8 products."""
MASKED_CAPABILITY = (9, 0)
"""The lowest compute capability whose fastest attention, cuDNN's, takes masks."""


def assemble(
    config: AppConfig,
    pool: PoolConfig,
    replica_id: str,
    scheduler: SchedulerForReplicas,
    transfer: Transfer,
    exit: Callable[[int], object] = os._exit,
    ranks: Leader | None = None,
) -> Runner:
    """Return a replica of the pool, ready to `run`. exit: as the runner's. ranks: that compute with this process.

    Errors: ConfigError for a dtype that the device lacks, a missing GPU, or one with too little memory.
    """
    device = device_of(pool)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    share = pool.memory_fraction or 1
    _log.info("pool=%s device=%s visible_gpus=%s memory_fraction=%g", pool.name, device, visible or "none", share)
    torch.set_num_threads(_threads(pool, device))
    catalog, store = open_catalog(config), open_store(config)
    packs = _packs(config, exit)
    known = {name: spec for name, spec in (packs.specs | specs()).items() if pool.runtime or not spec.runtime}
    routes = tuple(
        route
        for module, routes in packs.routes.items()
        if takes_pack(Pool.of(pool), module, packs.specs.values())
        for route in routes
    )
    runner = Runner(
        scheduler,
        ReplicaInfo(
            replica_id, pool.name, pool.tasks_per_replica, routes, rank_hosts=() if ranks is None else ranks.other_hosts
        ),
        classes=packs.classes | dict(BUILTIN),
        specs=known,
        models=make_models(catalog, config, pool, device, ranks) if pool.runtime else None,
        store=store,
        transfer=transfer,
        host=host_stats,
        results_bytes=pool.results_bytes,
        results_entries=config.results_entries,
        previews=config.preview_method,
        fingerprint=fingerprints(catalog, store),
        fetch=catalog.fetch,
        limits=config.limits.within(pool.memory_bytes or memory_bytes()),
        node_limits=NodeLimits(pool.name, pool.node_time_s, pool.runtime_node_time_s),
        stop_s=pool.stop_s,
        finish_s=pool.finish_s,
        cancelled_time_s=pool.cancelled_time_s,
        exit=exit,
        warm=pool.warm,
        stored=_stored_results(config, pool, device, store),
    )
    PromptServer.instance.send_to_client = runner.send_to_client
    return runner


def _stored_results(
    config: AppConfig, pool: PoolConfig, device: torch.device, store: WholeStore
) -> StoredResults | None:
    """Return the results from before a restart that a replica may use, if results outlive it."""
    if config.stored_results is None:
        return None
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    settings = pool.model_dump_json(include={*OPTIMIZATIONS, "dtype", "vae_dtype", "devices_per_replica", "parallel"})

    def files() -> NodeResultFiles:
        code = hashlib.sha256(f"{card} {torch.__version__} {settings}".encode())
        for module in sorted(Path(serve_app.__file__).parent.rglob("*.py")):
            code.update(module.read_bytes())
        return NodeResultFiles(store, code.hexdigest()[:24])

    return StoredResults(files, config.stored_results)


def device_of(pool: PoolConfig) -> torch.device:
    """Return the device of a pool's models. Errors: ConfigError if it needs a GPU that is not there or not usable."""
    return gpu_of(pool.name) if pool.gpus and pool.device != "cpu" else torch.device("cpu")


def memory_of(pool: PoolConfig, device: torch.device) -> tuple[int, Memory | None]:
    """Return the budget of weights on a pool's device, in bytes, and the device's memory, if it can be measured.

    Also sets the process's share of a card, and whether CUDA graphs are used. Errors: ConfigError if the card is too
    small.
    """
    asked = None if pool.weights_bytes == "auto" else pool.weights_bytes
    if device.type != "cuda":
        weights = host_weights_bytes(asked, own_limit(pool.memory_bytes))
        _log.info("pool=%s weights_mb=%d", pool.name, weights // MB)
        return weights, None
    free, total = torch.cuda.mem_get_info(device)
    try:
        share = card_share(total, free, pool.memory_fraction or 1)
        weights = share.weights_bytes(asked, pool.max_cells)
    except ConfigError as error:
        raise ConfigError(f"pool {pool.name}: {error}") from None
    if pool.memory_fraction is not None:
        torch.cuda.set_per_process_memory_fraction(share.allocator_bytes / total, device)
    _log.info(
        "pool=%s card_mb=%d free_mb=%d planned_mb=%d weights_mb=%d",
        *(pool.name, total // MB, free // MB, share.planned_bytes // MB, weights // MB),
    )
    replays = replays_of(device)
    replays.records = pool.graphs
    return weights, CardMemory(device, share.planned_bytes, replays)


def host_bytes_of(pool: PoolConfig, device: torch.device) -> int:
    """Return the host memory for weights that were evicted from a pool's device, in bytes.

    Errors: ConfigError if it is configured without a GPU.
    """
    asked = None if pool.host_bytes == "auto" else pool.host_bytes
    if device.type == "cuda":
        # The configured number is per replica; of the host's memory a replica gets the same share as of its cards.
        share = 1.0 if pool.memory_bytes else min(1.0, pool.gpus / max(1, gpu_count()))
        return offload_bytes(asked, own_limit(pool.memory_bytes), share)
    if asked:
        raise ConfigError(f"pool {pool.name}: host_bytes is of weights of a GPU, and its models are on a CPU")
    return 0


def set_arithmetic(pool: PoolConfig, device: torch.device) -> None:
    """Set the process's arithmetic as its pool configures it, on a GPU deterministic, as strict jobs need.

    Errors: ConfigError for matrix products that the device lacks.
    """
    if device.type != "cuda":
        if asked := [key for key in ("fast", "fp8_matmul") if getattr(pool, key) is True]:
            raise ConfigError(f"pool {pool.name}: {asked[0]} is of products on a GPU, and its models are on a CPU")
        return
    capability = torch.cuda.get_device_capability(device)
    if pool.fp8_matmul is True and capability < FP8_CAPABILITY:
        has, needed = (".".join(map(str, version)) for version in (capability, FP8_CAPABILITY))
        raise ConfigError(f"pool {pool.name}: fp8_matmul needs compute capability {needed}; this GPU has {has}")
    torch.backends.cuda.matmul.allow_fp16_accumulation = pool.fast
    # Each process would measure which convolution is fastest, and might choose another one.
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def set_kernels(pool: PoolConfig, device: torch.device) -> None:
    """Have the process compute attention, and compile, as its pool configures it.

    Errors: ConfigError for what does not work here, such as a package that is missing or has no kernels for the card.
    """
    if pool.attention != "sdpa":
        _set_attention(pool, device)
    if pool.compile:
        from serve_app.models.kernels.compiled_blocks import prepare_compiler

        if (reason := prepare_compiler(device)) is not None:
            raise ConfigError(f"pool {pool.name}: compile is true, and here it must be false: {reason}")


def _set_attention(pool: PoolConfig, device: torch.device) -> None:
    from serve_app.models.kernels.attention import PACKAGES, reason_against, use_attention

    asked = pool.attention
    if device.type != "cuda":
        raise ConfigError(f"pool {pool.name}: attention {asked} is of a GPU, and its models are on a CPU")
    reasons = {name: reason_against(name, device) for name in PACKAGES}
    if (reason := reasons[asked]) is not None:
        able = ", ".join(["sdpa", *(name for name, against in reasons.items() if against is None)])
        raise ConfigError(f"pool {pool.name}: attention is {asked}, and what works here is {able}: {reason}")
    use_attention(asked)


def check_dtypes(pool: PoolConfig, device: torch.device) -> None:
    """Errors: ConfigError for a dtype that is configured and that the device lacks."""
    try:
        dtype_of(pool.dtype, "backbone", device)
        dtype_of(pool.vae_dtype, "vae", device)
    except ConfigError as error:
        raise ConfigError(f"pool {pool.name}: {error}") from None


def fp8_matmul_of(pool: PoolConfig, device: torch.device) -> bool | None:
    """Return whether a pool's backbones multiply in fp8, as `weights.loading.Loader`; None: where files say so."""
    if pool.fp8_matmul != "auto":
        return pool.fp8_matmul
    capable = device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY
    return None if capable else False


def splits_texts(device: torch.device) -> bool:
    """Whether the device's flash attention takes no mask, as `models.network.ForwardOptions`."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) < MASKED_CAPABILITY


def _packs(config: AppConfig, exit: Callable[[int], object]) -> Packs:
    if config.custom_nodes_dir is None:
        return Packs()

    def watched(pack: str) -> AbstractContextManager[None]:
        return exit_unless_done_within(config.pack_import_s, f"importing node pack {pack}", exit)

    limit_image_files(config.limits.image_pixels)
    return load_packs(config.custom_nodes_dir, config.models_dir, config.directories, watched, extra_paths(config))


def _threads(pool: PoolConfig, device: torch.device) -> int:
    """Return the number of threads for tensor work. Ray would set it to num_cpus, by OMP_NUM_THREADS."""
    if pool.threads:
        return pool.threads
    return (os.cpu_count() or 1) if pool.runtime and device.type == "cpu" else max(1, round(pool.num_cpus))


def weights_on(
    catalog: Catalog, pool: PoolConfig, device: torch.device, ranks: Leader | None = None
) -> tuple[Callable[[WeightRanks | None], Weights], Memory | None]:
    """Return a function that makes the weights of a pool's device, and the device's memory, if it can be measured.

    The function takes the ranks that have sharded weights with this process, and imports torch's parts, which takes
    seconds. What the device must have is checked here, and the process set up for it. Errors: ConfigError.
    """
    set_arithmetic(pool, device)
    budget_bytes, memory = memory_of(pool, device)
    host_bytes = host_bytes_of(pool, device)
    check_dtypes(pool, device)
    set_kernels(pool, device)

    def make(weight_ranks: WeightRanks | None) -> Weights:
        from serve_app.models.network import ForwardOptions
        from serve_app.models.weights.weights import Weights

        return Weights(
            catalog,
            device,
            dtype=pool.dtype,
            vae_dtype=pool.vae_dtype,
            budget_bytes=budget_bytes,
            forwards_bytes=0 if memory is None else memory.planned_bytes - budget_bytes,
            host_bytes=host_bytes,
            fp8_matmul=fp8_matmul_of(pool, device),
            options=ForwardOptions(splits_texts(device), pool.compile, ranks, weight_ranks),
        )

    return make, memory


def make_models(
    catalog: Catalog, config: AppConfig, pool: PoolConfig, device: torch.device, ranks: Leader | None = None
) -> Callable[[], Models]:
    """Return a function that makes the engine on the pool's device; it imports torch's parts, which takes seconds."""
    make_weights, memory = weights_on(catalog, pool, device, ranks)

    def make() -> Models:
        with collector.freeze_startup_objects():
            from serve_app.engine.engine import Engine
            from serve_app.engine.runtime import EngineRuntime

            weights = make_weights(None if ranks is None else ranks.group.weights)
        engine = Engine(pool.max_cells, timeline_of(device), memory, weights=weights)
        latents = pool.latents(cuda=device.type == "cuda")
        return EngineRuntime(
            engine,
            weights,
            latent_cells=latents.cells,
            latent_pairs=latents.pairs,
            limits=config.limits,
            resume=config.resume,
            step_cache=EasyCache(pool.step_cache) if pool.step_cache else None,
        )

    return make
