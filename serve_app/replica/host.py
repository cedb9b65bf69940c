"""Measurements of this host: memory and GPUs, in MB. GPUs are read by NVML, which sees every card."""

from __future__ import annotations

import contextlib
import functools
import socket
from pathlib import Path

import psutil
import pynvml

from serve_app.scheduler.protocol.cluster_view import Gpu, HostStats

MB = 1024 * 1024
CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Files with a container's memory limit, of cgroups version 2 and 1."""


OWN_SHARE = 0.8
"""The default share of memory that one process may use."""


def host_stats() -> HostStats:
    """Return this host's memory and GPUs; no GPUs without an NVIDIA driver."""
    memory = psutil.virtual_memory()
    return HostStats(
        host=_host(),
        ram_total_mb=memory.total // MB,
        ram_used_mb=(memory.total - memory.available) // MB,
        ram_available_mb=memory.available // MB,
        gpus=tuple(map(_gpu, range(gpu_count()))),
    )


def memory_bytes() -> int:
    """Return the memory limit of this process: the host's memory, or its container's limit if that is less."""
    limits = [psutil.virtual_memory().total]
    for path in CONTAINER_LIMITS:
        # "max", or a number larger than any host's memory, is no limit.
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(path.read_text()))
    return min(limits)


def own_limit(configured_bytes: int) -> int:
    """Return the limit of this process's own memory: the configured one, or a share of the host's."""
    return configured_bytes or round(OWN_SHARE * memory_bytes())


@functools.cache
def _host() -> str:
    """Return the host's unique name: pods of one node share a boot id but not a name."""
    return socket.gethostname()


@functools.cache
def gpu_count() -> int:
    """Return how many GPUs the host, or its container, has; 0 without a driver."""
    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0


def driver_version() -> str:
    """Return the version of the NVIDIA driver, or `none`."""
    try:
        pynvml.nvmlInit()
        return _text(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return "none"


def _gpu(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        vram_total_mb=memory.total // MB,
        vram_free_mb=memory.free // MB,
        vram_used_mb=memory.used // MB,
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
