"""Builds a replica that runs a ComfyUI from its parts. No torch; no Ray."""

from __future__ import annotations

from serve_app.comfyui.process import Installation
from serve_app.config import AppConfig
from serve_app.config.comfyui import ComfyUIConfig
from serve_app.config.pool import PoolConfig
from serve_app.packs.routes import ANY, PackRoute
from serve_app.replica.comfyui_runner import ComfyUIRunner
from serve_app.replica.files import open_mirror, open_store
from serve_app.replica.host import host_stats
from serve_app.replica.transfer import Transfer
from serve_app.scheduler.protocol.cluster_view import HostStats
from serve_app.scheduler.protocol.messages import SchedulerForReplicas

ROUTES = (PackRoute(ANY, "/(?!-/).+"),)
"""A ComfyUI does not list its packs' routes, so its pool handles all paths without a route of ours."""
MEMORY_ARGUMENTS = ("--reserve-vram", "--vram-headroom", "--cpu", "--gpu-only")
"""Arguments with which an operator limits a process's GPU memory himself."""


def assemble_comfyui(
    config: AppConfig, pool: PoolConfig, replica_id: str, scheduler: SchedulerForReplicas, transfer: Transfer
) -> ComfyUIRunner:
    """Return a replica of the pool, ready to `run`."""
    assert pool.comfyui is not None
    comfyui = pool.comfyui
    return ComfyUIRunner(
        scheduler,
        replica_id,
        pool.name,
        comfyui.url or _installation(config, pool, comfyui),
        store=open_store(config),
        transfer=transfer,
        host=host_stats,
        previews=config.preview_method,
        limits=config.limits,
        start_s=comfyui.start_s,
        stop_s=pool.stop_s,
        keep_bytes=comfyui.keep_bytes,
        routes=ROUTES if comfyui.routes else (),
    )


def _installation(config: AppConfig, pool: PoolConfig, comfyui: ComfyUIConfig) -> Installation:
    assert comfyui.directory is not None
    share = () if pool.memory_fraction is None else memory_share(comfyui.arguments, pool.memory_fraction, host_stats())
    mirror = open_mirror(config)
    return Installation(
        directory=comfyui.directory,
        python=comfyui.python,
        arguments=(*comfyui.arguments, *share),
        models_dir=config.models_dir if mirror is None else None,
        extra_model_paths=config.extra_model_paths,
        mirror=mirror,
        scratch_dir=comfyui.scratch_dir,
    )


def memory_share(arguments: tuple[str, ...], fraction: float, host: HostStats) -> tuple[str, ...]:
    """Return the arguments that limit a process to its fraction of a card: ComfyUI's amount of memory to leave free."""
    if not host.gpus or any(argument.partition("=")[0] in MEMORY_ARGUMENTS for argument in arguments):
        return ()
    left_gb = (1 - fraction) * host.gpus[0].vram_total_mb / 1024
    return ("--reserve-vram", f"{left_gb:.2f}")
