"""The ranks of one replica without Ray: how they meet, and what each does until the replica ends.

Rank 0 is the replica's own process; `deployments/ranks` starts the others, on the same host or on several.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from serve_app import log
from serve_app.config import AppConfig
from serve_app.config.pool import PoolConfig
from serve_app.errors import ConfigError, RankLostError

if TYPE_CHECKING:
    import torch

    from serve_app.models.ranks.group import RankGroup
    from serve_app.models.ranks.leader import Leader
    from serve_app.models.ranks.meeting import Meeting

INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Environment variables that name the network interface of ranks' connections."""

_log = log.get("replica")


def reason_against(pool: PoolConfig, rank: int) -> str | None:
    """Return why this process cannot be a rank of a pool's replica, in a line that says which; None if it can."""
    from serve_app.replica.assemble import device_of

    try:
        device_of(pool)
    except ConfigError as error:
        return f"rank {rank} on host {socket.gethostname()}: {error}"
    return None


def interface_to(host: str) -> str:
    """Return the network interface by which this host reaches another, or itself, by its address. Errors: OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        # Nothing is sent.
        link.connect((host, 1))
        own = link.getsockname()[0]
    found = psutil.net_if_addrs().items()
    return next((name for name, addresses in found if any(one.address == own for one in addresses)), "lo")


def lead(pool: PoolConfig, meeting: Meeting) -> Leader:
    """Join the ranks of a replica as the first, once the others have joined. meeting: of all of them and nobody else.

    Errors: ConfigError if this process has no device, or the others do not come.
    """
    from serve_app.models.ranks.leader import Leader
    from serve_app.replica.assemble import device_of

    return Leader(_join(pool, 0, meeting, device_of(pool)), pool.parallel, pool.shard_weights)


def follow(config: AppConfig, pool: PoolConfig, rank: int, meeting: Meeting) -> None:
    """Join the ranks of a replica, and carry out the first one's orders until it ends. As `lead`."""
    import torch

    from serve_app.models.ranks.follower import Follower
    from serve_app.replica.assemble import device_of, weights_on
    from serve_app.replica.files import open_catalog

    device = device_of(pool)
    if pool.threads or device.type != "cuda":
        torch.set_num_threads(pool.threads or max(1, round(pool.num_cpus)))
    make_weights, _ = weights_on(open_catalog(config), pool, device)
    group = _join(pool, rank, meeting, device)
    Follower(group, make_weights(group.weights)).run()
    group.close()


def _join(pool: PoolConfig, rank: int, meeting: Meeting, device: torch.device) -> RankGroup:
    from serve_app.models.ranks.group import RankGroup

    at = "" if isinstance(meeting, Path) else f" at {meeting.host}"
    try:
        # On one host their connections are nobody else's business.
        interface = "lo" if isinstance(meeting, Path) else interface_to(meeting.host)
        for name in INTERFACES:
            os.environ.setdefault(name, interface)
        group = RankGroup(meeting, rank, pool.devices, device, pool.forward_time_s)
    except (RankLostError, OSError) as error:
        given = " or ".join(dict.fromkeys(os.environ.get(name, "none") for name in INTERFACES))
        raise ConfigError(
            f"pool {pool.name}: rank {rank} on host {socket.gethostname()} does not reach the others{at} of "
            f"devices_per_replica {pool.devices} by the interface {given}; {INTERFACES[0]} and "
            f"{INTERFACES[1]} name another one: {error}"
        ) from None
    _log.info("pool=%s rank=%d of %d device=%s has joined", pool.name, rank, pool.devices, device)
    return group
